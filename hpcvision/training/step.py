"""One optimisation step: the host draws its numbers, the device computes; on CUDA the whole of it is one graph."""

import time
from collections.abc import Callable

import torch

from hpcvision.config import RunConfig
from hpcvision.distributed import Rank
from hpcvision.seeding import stream_seed
from hpcvision.training.optim import learning_rate
from hpcvision.training.precision import keep_freed_memory
from hpcvision.training.state import NEVER, State, build_scaler, wrap
from hpcvision.training.tasks import Task

# Steps that run operation by operation before one is recorded: DDP rebuilds its buckets and times its first ten
# iterations with events, which a recording does not allow; cuDNN chooses its algorithms.
WARM_UP_STEPS = 12


class Step:
    """Trains by one step each time it is called. On CUDA one step is recorded and then replayed.

    What changes from step to step (images, augmentation, noise, learning rate, share of the average) reaches the device
    through tensors that stay in place, so that the recorded operations serve every step. Nothing makes the host wait.
    """

    def __init__(
        self, config: RunConfig, state: State, task: Task, rank: Rank, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.config, self.state, self.task, self.rank, self.say = config, state, task, rank, say
        self.inputs = {
            name: torch.zeros_like(values, device=rank.device) for name, values in task.draw(state.step).items()
        }
        keep_freed_memory()
        self.order_gradients()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.until_capture: int | None = WARM_UP_STEPS if self.wants_graph() else None

    def __call__(self) -> None:
        """One step of the global batch; call it on every rank."""
        started = time.perf_counter()
        state, config = self.state, self.config
        if self.until_capture == 0:
            self.capture()
        self.hand_over()
        # Dropout draws from torch's global state: set from the step, it needs no saving, and ranks drop differently.
        # Not torch.manual_seed: where no GPU was used yet it takes 0.5 ms and keeps three stack traces at every call.
        seed = stream_seed(config.seed, "dropout", state.step, self.rank.index)
        torch.default_generator.manual_seed(seed)
        if self.rank.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        if self.graph:
            self.graph.replay()
        else:
            self.compute()
        state.step += 1
        if self.until_capture:
            self.until_capture -= 1
        state.seconds += time.perf_counter() - started

    def hand_over(self) -> None:
        """Put the numbers of this step where the device reads them, without waiting for it."""
        state, config = self.state, self.config
        share = state.average.share(state.step + 1) if state.average else 0.0
        rate = learning_rate(config.optim, state.step, config.train.steps)
        drawn = self.task.draw(state.step) | {"knobs": torch.tensor([rate, share])}
        targets = self.inputs | {"knobs": state.knobs}
        for name, values in drawn.items():
            # Only from pinned memory does a copy to the GPU not block; torch keeps the memory until the copy is done.
            here = values.pin_memory() if self.rank.device.type == "cuda" else values
            targets[name].copy_(here, non_blocking=True)

    def compute(self) -> None:
        """Loss, gradients averaged over the ranks by DDP, update, moving average: device operations only."""
        state, clip = self.state, self.config.optim.gradient_clip
        loss, sums = self.task.loss(state.ddp, self.inputs)
        state.scaler.scale(loss).backward()
        if clip is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average:
            state.average.update(state.model, state.knobs[1])
        state.sums += sums
        state.steps_done += 1
        # Looked at only when the ranks agree; reading it at every step would make the host wait for the device.
        state.first_bad_step.clamp_(max=torch.where(sums[0].isfinite(), NEVER, state.steps_done))

    def order_gradients(self) -> None:
        """Let DDP order the gradients in its buckets, which it does at the third forward pass, before a step counts.

        More than two numbers are added in an order that depends on their place in a bucket: a stay would begin with
        other sums than the run has there that was not disturbed.
        """
        if self.rank.world_size <= 2:
            return
        model = self.state.model
        buffers = [buffer.clone() for buffer in model.buffers()]
        for _ in range(2):
            self.task.loss(self.state.ddp, self.inputs)[0].backward()
            self.state.optimizer.zero_grad(set_to_none=True)
        for buffer, kept in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(kept)

    def wants_graph(self) -> bool:
        """True on CUDA, unless switched off, or with Muon in fp16, for which torch asks the device for overflows."""
        asks_the_device = self.state.precision == "fp16" and self.config.optim.optimizer == "muon"
        return self.rank.device.type == "cuda" and self.config.train.cuda_graph and not asks_the_device

    def capture(self) -> None:
        """Record one step without running it; when any rank cannot, all go on operation by operation and say so."""
        self.until_capture = None
        graph = torch.cuda.CUDAGraph()
        reason = ""
        try:
            # thread_local: NCCL's watchdog asks for events meanwhile, which would end a recording in global mode.
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                try:
                    self.compute()
                except RuntimeError as error:
                    reason = in_brief(error)  # the end of the recording says no more than that something was wrong
                    raise
        except RuntimeError as error:
            reason = reason or in_brief(error)
        if int(self.rank.max(torch.tensor(int(bool(reason)), device=self.rank.device))):
            self.say(f"no CUDA graph: {reason or 'another process could not record it'}; steps run one by one")
            if self.rank.device.type == "cuda":
                # In older torch (2.11) a broken recording goes on in the generator, and the next dropout is an error.
                fresh = torch.Generator(self.rank.device).graphsafe_get_state()
                torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh)
            # What was interrupted in the middle of a backward pass is made anew; weights were not touched.
            self.state.optimizer.zero_grad(set_to_none=True)
            # Each rank keeps its own statistics of BatchNorm, as it does without a graph.
            self.state.ddp = wrap(self.state.trained, self.rank, init_sync=False)
            scaler = build_scaler(self.state.precision, self.rank)
            scaler.load_state_dict(self.state.scaler.state_dict())
            self.state.scaler = scaler
            self.order_gradients()
        else:
            self.graph = graph


def in_brief(error: RuntimeError) -> str:
    """Its first line, and never nothing."""
    return str(error).partition("\n")[0] or type(error).__name__
