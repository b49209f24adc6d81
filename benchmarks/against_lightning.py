"""Our training step against `lightning.pytorch.Trainer`: `python benchmarks/against_lightning.py`.

Both train the model of the job `cifar100_baby_mobilenet` on the CPU: the same class with the same first weights, the
same optimiser, the same batches, made before. Dropout is off, because the two would draw it differently. Ours is
`hpcvision.training.step.Step` without the moving average of the weights. In Lightning logging, checkpoints, progress
bar, model summary and validation are off.

What is fair: both run in this process with the same threads, in turns, and where there is a choice Lightning gets the
better of it. Every turn calls fit(), but only its steps count, from on_train_batch_start of the first to
on_train_batch_end of the last: start-up, the end of fit() and even fetching the first batch are free. Lightning reads
finished batches without a DataLoader and runs without DistributedDataParallel; ours has DistributedDataParallel, a
random seed for every step and sums of the loss, as always. The losses of all steps in fp32 are compared, so neither
side can leave anything out. Lightning is no dependency: without it the benchmark is skipped.
"""

import logging
import tempfile
import time
import warnings
from collections import UserList
from importlib.metadata import version
from pathlib import Path
from statistics import median

import measuring
import torch
from torch import nn
from torch.nn import functional

from hpcvision import distributed
from hpcvision.config import RunConfig, apply
from hpcvision.config.catalogue import load_job
from hpcvision.config.run import Precision
from hpcvision.distributed import Place, Rank
from hpcvision.models import build_model
from hpcvision.training import state as states
from hpcvision.training.batches import Batches
from hpcvision.training.optim import build_optimizer
from hpcvision.training.precision import autocast, set_arithmetic
from hpcvision.training.step import Step

try:
    from lightning.pytorch import LightningModule, Trainer
except ImportError:
    print("skipped, because Lightning is missing: pip install lightning")
    raise SystemExit(0) from None

Batch = tuple[torch.Tensor, torch.Tensor]
CHANGES = {
    "data.source": "synthetic",
    "model.dropout": 0.0,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "optim.learning_rate": 0.125,  # float32 holds it exactly: ours is a tensor, Lightning's a number
    "ema.beta": 0.0,
}
LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
LARGEST_DIFFERENCE = 1e-5  # relative, between the losses of the same step in fp32


def loss_of(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    return functional.cross_entropy(model(images).float(), labels)


class Ours:
    """The step of the training loop; also its task, which draws nothing but the number of the batch."""

    metric_names: tuple[str, ...] = ()

    def __init__(self, config: RunConfig, rank: Rank, precision: Precision, batches: list[Batch]) -> None:
        self.batches, self.rank, self.precision = batches, rank, precision
        self.losses: list[torch.Tensor] = []
        state = states.fresh(config, rank, len(self.metric_names), precision)
        self.model, self.step = state.model, Step(config, state, self, rank)

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        """Which batch."""
        return {"number": torch.tensor(step % len(self.batches))}

    def loss(self, model: nn.Module, drawn: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss; sums: loss, count."""
        images, labels = self.batches[int(drawn["number"])]
        with autocast(self.precision, self.rank.device):
            loss = loss_of(model, images, labels)
        self.losses.append(loss.detach())
        return loss, torch.stack([loss.detach().double(), loss.new_ones((), dtype=torch.float64)]) * len(labels)

    def turn(self) -> float:
        """Seconds of one pass over the batches."""
        started = time.perf_counter()
        for _ in self.batches:
            self.step()
        return time.perf_counter() - started


class Lightning(LightningModule):
    """The same model in a LightningModule. Every turn has a Trainer of its own; the optimiser outlives it."""

    def __init__(self, config: RunConfig, precision: Precision, batches: list[Batch]) -> None:
        super().__init__()
        self.model = build_model(config.model, seed=config.seed)
        if config.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.lasting_optimizer = build_optimizer(config.optim, self.model, config.optim.learning_rate)
        self.precision = LIGHTNING_PRECISION[precision]
        self.batches = UserList(batches)  # Lightning takes a list for several loaders
        self.losses: list[torch.Tensor] = []
        self.started = self.ended = 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The same one in every turn, with its momentum."""
        return self.lasting_optimizer

    def training_step(self, batch: Batch) -> torch.Tensor:
        """Mean loss."""
        loss = loss_of(self.model, *batch)
        self.losses.append(loss.detach())
        return loss

    def on_train_batch_start(self, _: Batch, number: int) -> None:
        """Lightning calls it before each step."""
        if number == 0:
            self.started = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        """Lightning calls it after each step."""
        self.ended = time.perf_counter()

    def turn(self) -> float:
        """Seconds of one pass over the batches."""
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        off |= {"limit_val_batches": 0, "num_sanity_val_steps": 0}
        Trainer(accelerator="cpu", devices=1, precision=self.precision, max_epochs=1, **off).fit(self, self.batches)
        return self.ended - self.started


def measure(config: RunConfig, rank: Rank, rounds: int, steps: int) -> dict:
    """Time both in both precisions, in turns; gives what `measuring.report` takes."""
    maker = Batches(config, rank)
    batches = [maker.local(maker.draw(step)) for step in range(steps)]
    cases: dict[str, Ours | Lightning] = {}
    for precision in LIGHTNING_PRECISION:
        ours, other = Ours(config, rank, precision, batches), Lightning(config, precision, batches)
        weights = other.model.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.model.state_dict().items())
        cases |= {f"ours, {precision}": ours, f"Lightning, {precision}": other}

    # Each case says itself which part of its turn counts.
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    turns = {name: lambda name=name: seconds[name].append(cases[name].turn() / steps) for name in cases}
    measuring.interleave(turns, rounds=rounds, warm_up=1)
    seconds = {name: values[1:] for name, values in seconds.items()}

    ratios, differences = {}, {}
    for precision in LIGHTNING_PRECISION:
        own, other = f"ours, {precision}", f"Lightning, {precision}"
        ratios[f"ratio_lightning_{precision}"] = measuring.ratio(seconds[other], seconds[own])
        losses, expected = torch.stack(cases[own].losses), torch.stack(cases[other].losses)
        assert len(losses) == (rounds + 1) * steps
        differences[precision] = float(((losses - expected) / expected).abs().max())
    assert differences["fp32"] <= LARGEST_DIFFERENCE, f"the losses differ by {differences['fp32']:.1e}"
    rows = [
        {
            "case": name,
            "milliseconds_per_step": 1000 * median(values),
            "images_per_second": config.train.global_batch_size / median(values),
            "last_loss": float(cases[name].losses[-1]),
        }
        for name, values in seconds.items()
    ]
    return {"rows": rows, "ratios": ratios, "largest_relative_difference_of_losses": differences, "seconds": seconds}


def main() -> None:
    parser = measuring.parser(__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="turns of every case")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--batch", type=int, default=128, help="images of a step")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = apply(load_job("cifar100_baby_mobilenet"), CHANGES | {"train.global_batch_size": arguments.batch})
    with tempfile.TemporaryDirectory() as folder:
        rank = distributed.start(Place(), Path(folder))
        if rank.device.type != "cpu":
            raise SystemExit("this benchmark compares on the CPU; hide the GPUs with CUDA_VISIBLE_DEVICES=''")
        set_arithmetic(config.train, rank)
        measured = measure(config, rank, arguments.rounds, arguments.steps)
        distributed.stop()
    title = f"step of {arguments.batch} finished images, {torch.get_num_threads()} threads"
    settings = {"rounds": arguments.rounds, "steps": arguments.steps, "lightning": version("lightning")}
    measuring.report(title, json_file=arguments.json, **measured, **settings)


if __name__ == "__main__":
    main()
