"""Our training step against a plain PyTorch loop, and what augmentation costs: `python benchmarks/train_step.py`.

Both train the job `cifar100_baby_mobilenet` on the CPU: the same model with the same first weights, the same seven
augmentations, SGD and learning rates, a moving average of the weights, loss and accuracy summed at every step. Neither
logs, evaluates or writes. The images are CIFAR-100 where $HPCVISION_DATA holds it, else synthetic ones. The plain loop
(benchmarks/plain.py) is what most people write: a DataLoader whose 2 workers vary PIL images one by one with
torchvision.transforms.v2, fp32, contiguous memory. Ours is `hpcvision.training.step.Step`, once as the job starts it by
itself (its number of processes, its precision), and in one process in both precisions. All may use the same cores; in
one process ours and the plain loop compute with the same number of threads.

What is fair: the cases take turns, so that what disturbs the machine disturbs all. The plain loop runs in a process of
its own, where nothing that ours sets for its process can speed it up or slow it down; it waits while others have their
turn. Workers prefetch, so its timed steps are cut out of the middle of a stream. At the start of a turn nothing is
ready. The loop first trains on as many batches as the workers prefetch, untimed; then come the timed steps, in which
the workers begin one batch for each that is taken, as in an endless run. What they prefetched meanwhile is thrown away
at the end of the turn, untimed. So filling and emptying the pipeline is not counted, nor is starting the processes, and
no batch is made during the turns of others. Ours has no pipeline; it gets one untimed step.

The rows of augmentation show the time of our code for one batch with only that operation on. Each includes the row
`nothing`: picking the images, conversion to float, normalisation, memory format. `augmentation_share` is `all together`
plus `drawing numbers` as a part of the step at the default precision, so it includes `nothing` as well.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import measuring
import ours as our_ranks
import plain
import torch

from hpcvision import data, distributed
from hpcvision.config import AugmentConfig, RunConfig, apply
from hpcvision.config.catalogue import load_job
from hpcvision.config.run import Precision
from hpcvision.distributed import Place, Rank
from hpcvision.training import state as states
from hpcvision.training.batches import Batches
from hpcvision.training.precision import choose_precision, set_arithmetic
from hpcvision.training.step import Step
from hpcvision.training.tasks import Classify

CALLS = 5  # of each part of the augmentation in a turn
DRAWING, EVERYTHING = "drawing numbers", "all together"
# The fields of the job's AugmentConfig that each operation takes over.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "crop": ("crop_padding", "padding_mode"),
    "flip": ("flip",),
    "rotation": ("rotation_degrees", "padding_mode"),
    "colour": ("brightness", "contrast", "saturation", "hue"),
    "blur": ("blur_probability", "blur_sigma"),
    "erasing": ("erasing_probability", "erasing_area"),
    EVERYTHING: tuple(AugmentConfig.model_fields),
}


class Ours:
    """The step of the training loop."""

    def __init__(self, config: RunConfig, rank: Rank, precision: Precision, steps: int) -> None:
        task = Classify(config, rank, precision)
        state = states.fresh(config, rank, len(task.metric_names), precision)
        self.steps, self.model, self.step = steps, state.model, Step(config, state, task, rank)

    def turn(self) -> float:
        """Seconds of the timed steps."""
        self.step()
        started = time.perf_counter()
        for _ in range(self.steps):
            self.step()
        return time.perf_counter() - started


def assert_same_model(other: plain.Remote, ours: Ours, images: torch.Tensor) -> None:
    """Same weights bit for bit, same logits up to rounding: the memory formats differ in the order of additions."""
    weights, own = other.weights(), ours.model.state_dict()
    assert weights.keys() == own.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())
    with torch.no_grad():
        torch.testing.assert_close(other.logits(images), ours.model.eval()(images), rtol=1e-4, atol=1e-5)
    ours.model.train()


def input_parts(config: RunConfig, rank: Rank) -> dict[str, Callable[[], object]]:
    """What makes a batch with only one operation on, by its name, and what draws the numbers for it."""
    parts: dict[str, Batches] = {}
    for name, fields in OPERATIONS.items():
        values = {field: getattr(config.data.augmentation, field) for field in fields}
        changed = config.data.model_copy(update={"augmentation": AugmentConfig.model_validate(values)})
        parts[name] = Batches(config.model_copy(update={"data": changed}), rank)
    whole = parts[EVERYTHING]
    assert whole.config == config
    drawn = whole.draw(0)
    calls: dict[str, Callable[[], object]] = {name: lambda part=part: part.local(drawn) for name, part in parts.items()}
    calls[DRAWING] = lambda: whole.draw(0)
    return {name: lambda call=call: [call() for _ in range(CALLS)] for name, call in calls.items()}


def measure(
    config: RunConfig, rank: Rank, other: plain.Remote, ranks: our_ranks.Ranks, rounds: int, steps: int
) -> dict[str, Any]:
    """Time everything in turns; gives what `measuring.report` takes."""
    default = choose_precision(config.train, rank)
    ours, ours_fp32 = (Ours(config, rank, precision, steps) for precision in (default, "fp32"))
    parts, batches = input_parts(config, rank), Batches(config, rank)
    for each in (ours, ours_fp32):
        assert_same_model(other, each, batches.local(batches.draw(0))[0])

    assert ranks.first_weights == our_ranks.digest(other.weights())

    # The loops say themselves which part of a turn counts.
    loops = {
        f"ours, as started ({default}, {len(ranks.processes)} processes)": ranks,
        f"ours, {default}, one process": ours,
        "ours, fp32, one process": ours_fp32,
        "plain loop, fp32": other,
    }
    inside: dict[str, list[float]] = {name: [] for name in loops}
    turns = {name: lambda name=name: inside[name].append(loops[name].turn() / steps) for name in loops}
    outside = measuring.interleave(turns | parts, rounds=rounds, warm_up=1)
    seconds = {name: values[1:] for name, values in inside.items()}
    own, _, own_fp32, theirs = seconds.values()
    seconds |= {name: [value / CALLS for value in outside[name]] for name in parts}
    inputs = [sum(pair) for pair in zip(seconds[EVERYTHING], seconds[DRAWING], strict=True)]
    rows = [
        {
            "case": name,
            "milliseconds": 1000 * median(values),
            "images_per_second": config.train.global_batch_size / median(values),
            "percent_of_default_step": 100 * measuring.ratio(values, own),
            "percent_of_fp32_step": 100 * measuring.ratio(values, own_fp32),
        }
        for name, values in seconds.items()
    ]
    ratios = {
        "ratio_end_to_end_default_precision": measuring.ratio(theirs, own),
        "ratio_end_to_end_fp32": measuring.ratio(theirs, own_fp32),
    }
    shares = {
        "augmentation_share": measuring.ratio(inputs, own),
        "augmentation_share_fp32": measuring.ratio(inputs, own_fp32),
    }
    return {"rows": rows, "ratios": ratios, **shares, "default_precision": default, "seconds": seconds}


def main() -> None:
    parser = measuring.parser(__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="turns of every case")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a turn")
    arguments = parser.parse_args()
    rounds, steps = arguments.rounds, arguments.steps
    cifar = data.status("cifar100")
    source = "cifar100" if cifar["prepared"] or not cifar["missing"] else "synthetic"
    config = apply(load_job("cifar100_baby_mobilenet"), {"data.source": source})
    with tempfile.TemporaryDirectory() as folder:
        rank = distributed.start(Place(), Path(folder))
        if rank.device.type != "cpu":
            raise SystemExit("this benchmark compares on the CPU; hide the GPUs with CUDA_VISIBLE_DEVICES=''")
        set_arithmetic(config.train, rank)
        with (
            plain.in_a_process(config, steps, torch.get_num_threads()) as other,
            our_ranks.as_the_job_starts_them(config, steps) as ranks,
        ):
            measured = measure(config, rank, other, ranks, rounds, steps)
        distributed.stop()
    title = f"training step, batch of {config.train.global_batch_size}, {source}, {torch.get_num_threads()} threads"
    measuring.report(title, json_file=arguments.json, **measured, rounds=rounds, steps=steps)
    for name in ("augmentation_share", "augmentation_share_fp32"):
        print(f"{name} {measured[name]:.4f}")


if __name__ == "__main__":
    main()
