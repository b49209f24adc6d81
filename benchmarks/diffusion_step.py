"""Our diffusion step against denoising-diffusion-pytorch and diffusers: `python benchmarks/diffusion_step.py`.

All train the denoiser of the job `cifar100_ddpm_small` on the CPU: the same class with the same first weights,
Adam with the same settings, gradients clipped at norm 1, a moving average of the weights, the linear schedule. Ours is
`hpcvision.training.step.Step`. `lucidrains` is the `Trainer` of denoising-diffusion-pytorch. diffusers has no trainer:
its case is a loop over its parts and those of accelerate, in the order of its example train_unconditional.py.

Two figures for each. `pre-made`: all get the same normalised batches with labels, one memory format and the same fused
optimiser; each draws its own noise. `out of the box`: each has its own data path, memory format, form of the optimiser
and way to use the cores; all mirror half of the images. Ours picks from uint8 images in memory and runs in the
processes that `hpcvision train` starts by itself; lucidrains reads PNG files, diffusers varies PIL images in memory,
both in as many DataLoader workers as the machine has cores, and compute with as many threads. All that is in fp32, the
peers' default. `ours own precision` is ours with the default of its own, bf16 where the CPU computes that natively, and
`ours in one process` is ours without processes of its own.

What is fair: all run in this process with the same threads, in turns, and where there is a choice the peers get the
better of it. Their progress bars are off, and nothing is logged, sampled or saved. Ours has DistributedDataParallel, a
random seed for every step and sums of the loss, as always; the freed memory that it keeps speeds up all. Workers
prefetch, so the timed steps are cut out of the middle of a turn's epoch; what lies before and after is not timed.

In the untimed first turn the pre-made cases get the noise and timesteps that ours draws, and their losses are compared
step by step, so neither side can leave anything out. `share_ema_and_metrics` is the part of our step that goes into the
moving average, the running sums of the loss and the look for losses that are not finite; only the sum over one batch,
made before the gradients, is not in it. The peers are no dependencies: without them the benchmark is skipped.
"""

import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import measuring
import ours as our_ranks
import torch
from diffusion_peers import BEFORE, PREFETCHED, VERSIONS, Batch, Diffusers, Lucidrains, Pictures, add_arguments, set_up
from PIL import Image
from torch import Tensor, nn

from hpcvision import distributed
from hpcvision.config import RunConfig, apply
from hpcvision.distributed import Rank
from hpcvision.models.counting import parameters_of
from hpcvision.training import state as states
from hpcvision.training.batches import Batches
from hpcvision.training.ema import WeightAverage
from hpcvision.training.step import Step
from hpcvision.training.tasks import Diffuse

LARGEST_DIFFERENCE = 1e-3  # relative, between losses of the same step with the same noise
LARGEST_DIFFERENCE_OF_MEANS = 0.25  # relative, where each draws its own noise
LARGEST_SHARE = 0.03
NOT_ALIGNED = (
    "each draws its own noise and timesteps but in the first turn; of the later losses only the means are compared",
    "lucidrains' Trainer knows no labels: out of the box it trains without them, which costs the same",
    "lucidrains updates its average every 10 steps, its default, the others at every step; the warm-ups differ",
    "out of the box: fused AdamW and channels_last for ours, Adam and AdamW (not fused) and contiguous for the peers",
    "out of the box: ours computes in its own processes with a thread each, the peers in one process with threads",
)


class Finished:
    """Takes the place of `Batches`: the batches were made before."""

    def __init__(self, batches: list[Batch], rows: slice) -> None:
        self.batches, self.rows = batches, rows

    def draw(self, step: int) -> dict[str, Tensor]:
        """Which batch."""
        return {"number": torch.tensor(step % len(self.batches))}

    def local(self, drawn: dict[str, Tensor]) -> Batch:
        """That batch."""
        return self.batches[int(drawn["number"])]


class TimedAverage(WeightAverage):
    """The moving average; notes when its update began."""

    began = 0.0

    def update(self, model: nn.Module, share: Tensor) -> None:
        """As always."""
        self.began = time.perf_counter()
        super().update(model, share)


class TimedStep(Step):
    """The step of the training loop; from the beginning of the average to its end all is average or metrics."""

    aside = 0.0

    def compute(self) -> None:
        """As always."""
        super().compute()
        self.aside += time.perf_counter() - self.state.average.began


class Ours(Diffuse):
    """The task, which notes its losses, with its step."""

    def __init__(self, config: RunConfig, rank: Rank, steps: int, batches: list[Batch] | None) -> None:
        super().__init__(config, rank, "fp32")
        if batches:
            self.batches = Finished(batches, self.batches.rows)
        self.steps, self.noted, self.shares = steps, list[Tensor](), list[float]()
        state = states.fresh(config, rank, len(self.metric_names), "fp32")
        state.average = TimedAverage(config.ema, state.model)
        self.model, self.step = state.model, TimedStep(config, state, self, rank)

    def loss(self, model: nn.Module, drawn: dict[str, Tensor]) -> Batch:
        """Mean loss; sums."""
        loss, sums = super().loss(model, drawn)
        self.noted.append(loss.detach())
        return loss, sums

    def turn(self) -> float:
        """Seconds of the timed steps of a turn."""
        for _ in range(BEFORE):
            self.step()
        self.step.aside, started = 0.0, time.perf_counter()
        for _ in range(self.steps):
            self.step()
        seconds = time.perf_counter() - started
        self.shares.append(self.step.aside / seconds)
        return seconds


def measure(
    config: RunConfig, rank: Rank, started: dict[str, our_ranks.Ranks], folder: Path, rounds: int, steps: int
) -> dict[str, Any]:
    """Time all in turns; gives what `measuring.report` takes. started: ours as `hpcvision train` starts it, by case."""
    maker = Batches(config, rank)
    split, count = maker.split("train"), (steps + 2 * PREFETCHED) * config.train.global_batch_size
    pictures = Pictures(split.images[:count], split.labels[:count])
    for number, pixels in enumerate(pictures.images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    finished = [maker.local(maker.draw(step)) for step in range(BEFORE + steps)]
    cases: dict[str, Ours | Lucidrains | Diffusers] = {}
    for kind, batches in (("premade", finished), ("out_of_the_box", None)):
        cases |= {
            f"ours_{'premade' if batches else 'in_one_process'}": Ours(config, rank, steps, batches),
            f"lucidrains_{kind}": Lucidrains(config, folder, steps, batches),
            f"diffusers_{kind}": Diffusers(config, pictures, steps, batches),
        }
    ours = cases["ours_premade"]
    weights = ours.model.state_dict()
    for case in cases.values():
        assert all(torch.equal(tensor, weights[name]) for name, tensor in case.model.state_dict().items())
    assert all(ranks.first_weights == our_ranks.digest(weights) for ranks in started.values())

    drawn = [ours.draw(step) for step in range(BEFORE + steps)]
    peers = ("lucidrains", "diffusers")
    for peer in peers:
        cases[f"{peer}_premade"].fed.extend(drawn)
    for case in cases.values():
        case.turn()
    differences = {peer: difference(cases[f"{peer}_premade"].noted, ours.noted) for peer in peers}
    assert max(differences.values()) <= LARGEST_DIFFERENCE, f"the losses differ: {differences}"

    turns = {name: case.turn for name, case in cases.items()} | {name: ranks.turn for name, ranks in started.items()}
    for ranks in started.values():
        ranks.turn()
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            seconds[name].append(turn() / steps)
    kinds = [(peer, kind) for kind in ("premade", "out_of_the_box") for peer in peers]
    own = [(peer, "own_precision") for peer in peers]
    # Out of the box the peers have trained for longer: the same number of first steps is compared.
    first = (rounds + 1) * (BEFORE + steps)
    means = {name: float(torch.stack(case.noted[:first]).mean()) for name, case in cases.items()}
    means |= dict.fromkeys(started, means["ours_in_one_process"])  # the same code, whose losses are not heard here
    return {
        "rows": [
            {
                "case": name.replace("_", " "),
                "milliseconds_per_step": 1000 * median(values),
                "fastest": 1000 * min(values),
                "slowest": 1000 * max(values),
                "images_per_second": config.train.global_batch_size / median(values),
                "mean_loss": means[name],
            }
            for name, values in seconds.items()
        ],
        "ratios": {
            f"ratio_{peer}_{kind}": measuring.ratio(
                seconds[f"{peer}_{kind.replace('own_precision', 'out_of_the_box')}"], seconds[f"ours_{kind}"]
            )
            for peer, kind in kinds + own
        },
        "share_ema_and_metrics": median(ours.shares[1:]),
        "largest_relative_difference_of_losses": differences,
        "relative_differences_of_mean_losses": {
            f"{peer}_{kind}": abs(means[f"{peer}_{kind}"] / means[f"ours_{kind}"] - 1) for peer, kind in kinds
        },
        "seconds": seconds,
    }


def difference(losses: list[Tensor], expected: list[Tensor]) -> float:
    """The largest, relative to what is expected."""
    return float((torch.stack(losses) / torch.stack(expected) - 1).abs().max())


def main() -> None:
    parser = measuring.parser(__doc__.partition("\n")[0])
    add_arguments(parser, rounds=8, images="images of a step")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    with tempfile.TemporaryDirectory() as name:
        config, rank = set_up(arguments, Path(name))
        with (
            our_ranks.as_the_job_starts_them(config, arguments.steps) as fp32,
            our_ranks.as_the_job_starts_them(apply(config, {"train.precision": "auto"}), arguments.steps) as auto,
        ):
            started = {"ours_out_of_the_box": fp32, "ours_own_precision": auto}
            measured = measure(config, rank, started, Path(name), arguments.rounds, arguments.steps)
        distributed.stop()
    title = f"{arguments.model} of width {arguments.width}, fp32, batch {arguments.batch}, {arguments.threads} threads"
    settings = vars(arguments) | {"parameters": parameters_of(config.model), "source": config.data.source}
    measuring.report(
        title,
        json_file=settings.pop("json"),
        **measured,
        **settings,
        peers=VERSIONS,
        not_aligned=NOT_ALIGNED,
    )
    share, means = measured["share_ema_and_metrics"], measured["relative_differences_of_mean_losses"]
    print(f"share_ema_and_metrics {share:.4f}")
    print("not aligned: " + "\n             ".join(NOT_ALIGNED))
    if share > LARGEST_SHARE:
        raise SystemExit(f"average and metrics take {share:.1%} of a step, more than {LARGEST_SHARE:.0%}")
    if max(means.values()) > LARGEST_DIFFERENCE_OF_MEANS:
        raise SystemExit(f"the mean losses differ by more than {LARGEST_DIFFERENCE_OF_MEANS:.0%}: {means}")


if __name__ == "__main__":
    main()
