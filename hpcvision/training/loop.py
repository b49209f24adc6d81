"""The training loop of every task. One step = one optimisation step of the global batch."""

import time

import torch

from hpcvision.config import RunConfig
from hpcvision.distributed import Rank, StopRequest
from hpcvision.errors import TrainingStopped
from hpcvision.models.counting import check_cap
from hpcvision.rundir import RunDir, check_same
from hpcvision.seeding import stream_seed
from hpcvision.training import checkpoint
from hpcvision.training import state as states
from hpcvision.training.bookkeeping import Bookkeeping, Outcome
from hpcvision.training.optim import learning_rate, set_learning_rate
from hpcvision.training.precision import set_arithmetic
from hpcvision.training.state import NEVER, State
from hpcvision.training.tasks import TASKS, Task


def train(config: RunConfig, rundir: RunDir, rank: Rank, stop: StopRequest, *, read_test: bool = True) -> Outcome:
    """Train until the last step or until asked to stop; goes on from the checkpoint in `rundir` when there is one.

    read_test=False ends with the scores of the validation split instead and leaves the test split alone.
    """
    parameters = check_cap(config)
    set_arithmetic(config.train, rank)
    task: Task = TASKS[config.task.kind](config, rank)
    state = states.fresh(config, rank, len(task.metric_names))
    content, said = checkpoint.load(rundir)
    if content is not None:
        check_same(config, RunConfig.model_validate(content["config"]), rundir.folder)
        states.restore(state, content, rank)
    check_all_resume_together(state, rank)
    with Bookkeeping(config, rundir, rank, task, state, parameters) as books:
        if said:
            books.progress.say(said)
        books.evaluate_if_missing()
        code = 0
        while state.step < config.train.steps and not code:
            one_step(config, state, task, rank)
            code = books.after_step(stop)
        if code:
            return books.interrupted(StopRequest.reason(code))
        return books.finish("test" if read_test else "validation")


def check_all_resume_together(state: State, rank: Rank) -> None:
    """Raise TrainingStopped when the ranks have read different checkpoints, as a stale cache of a shared disk gives."""
    steps = rank.gather(torch.tensor(state.step, device=rank.device)).tolist()
    if len(set(steps)) > 1:
        raise TrainingStopped(f"the ranks read checkpoints of steps {steps}; try again in a minute")


def one_step(config: RunConfig, state: State, task: Task, rank: Rank) -> None:
    """One optimisation step: loss, gradients averaged over the ranks by DDP, update, moving average."""
    started = time.perf_counter()
    set_learning_rate(state.optimizer, learning_rate(config.optim, state.step, config.train.steps))
    # Dropout draws from torch's global state: set from the step, it needs no saving, and ranks drop differently.
    torch.manual_seed(stream_seed(config.seed, "dropout", state.step, rank.index))
    loss, sums = task.loss(state.ddp, state.step)
    state.scaler.scale(loss).backward()
    if config.optim.gradient_clip is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.gradient_clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.average:
        state.average.update(state.model, state.step)
    state.sums += sums
    # Looked at only when the ranks agree; reading it at every step would make the host wait for the device.
    state.first_bad_step.clamp_(max=torch.where(sums[0].isfinite(), NEVER, state.step))
    state.seconds += time.perf_counter() - started
