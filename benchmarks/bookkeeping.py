"""What checkpoints, log points, TensorBoard and the archive cost, as a share of a run at the default cadence.

    python benchmarks/bookkeeping.py --json bookkeeping.json

One process trains the job on drawn images, into the folder for temporary files ($TMPDIR). First every kind of event is
timed alone, on the Bookkeeping object of the run, each after a step, as it comes in a run, and with as many points in
the files as half a run has. Then the same number of steps is taken in turns with and without bookkeeping, as a check;
there the noise of the machine may be larger than what is looked for. Evaluations are not counted: they are part of what
a run is for.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import interleave, parser, ratio, report
from ranks import built

from hpcvision import distributed
from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare
from hpcvision.models.counting import parameters_of
from hpcvision.stopping import StopRequest
from hpcvision.training.bookkeeping import AGREE_AT_MOST_EVERY, AGREE_MILLISECONDS, Bookkeeping
from hpcvision.training.step import Step

LIMIT_SHARE = 0.02
WARM_UP = 5


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--job", default="cifar100_baby_mobilenet", help="whose model, images and optimiser")
    arguments_of.add_argument("--batch", type=int, default=512, help="images per step")
    arguments_of.add_argument("--events", type=int, default=25, help="events of each kind that are timed")
    arguments_of.add_argument("--rounds", type=int, default=3, help="turns with and without bookkeeping; 0 for none")
    arguments_of.add_argument("--turn", type=int, default=500, help="steps of a turn, a multiple of checkpoint_every")
    arguments = arguments_of.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    changes = {"data.source": "synthetic", "train.global_batch_size": arguments.batch}
    config = apply(load_job(arguments.job), changes | {"cadence.evaluate_every": 10**9})
    steps = WARM_UP + 5 * arguments.events + 2 * arguments.rounds * arguments.turn
    assert steps < config.train.steps, "what happens at the last step is not meant"
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        rundir = prepare(config, Path(folder))
        rank = distributed.start(distributed.Place(), rundir.folder)
        step = built(config, rank)
        with Bookkeeping(config, rundir, rank, step.task, step.state, parameters_of(config.model)) as books:
            seconds = events(step, books, stop, arguments.events)
            books.next_agreement = step.state.step + 1

            def without() -> None:
                for _ in range(arguments.turn):
                    step()

            def kept() -> None:
                for _ in range(arguments.turn):
                    step()
                    books.after_step(stop)

            turns = interleave({"without": without, "with": kept}, rounds=arguments.rounds, warm_up=0)
        distributed.stop()

    cadence, step_seconds = config.cadence, statistics.median(seconds["step"])
    # As Bookkeeping.agree counts it; every checkpoint is agreed on as well.
    interval = min(AGREE_AT_MOST_EVERY, max(1, AGREE_MILLISECONDS // math.ceil(1000 * step_seconds)))
    per_step = {
        "log point": 1 / cadence.log_every,
        "agreement": 1 / interval + 1 / cadence.checkpoint_every,
        "checkpoint and archive": 1 / cadence.checkpoint_every,
        "nothing due": 1.0,
    }
    shares = {name: statistics.mean(seconds[name]) * often / step_seconds for name, often in per_step.items()}
    share = sum(shares.values())
    more = {"share_of_run": share}
    if arguments.rounds:
        more["share_end_to_end"] = ratio(turns["with"], turns["without"]) - 1
    report(
        f"{arguments.job}, batch {arguments.batch}, share of the run {100 * share:.3f} %"
        + (f", end to end {100 * more['share_end_to_end']:.2f} %" if arguments.rounds else ""),
        [
            {
                "what": name,
                "median_ms": 1000 * statistics.median(values),
                "mean_ms": 1000 * statistics.mean(values),
                "per_1000_steps": 1000 * per_step.get(name, 1.0),
                "percent_of_run": 100 * shares.get(name, 1.0),
            }
            for name, values in seconds.items()
        ],
        ratios={"ratio_limit_over_share": LIMIT_SHARE / share},
        json_file=arguments.json,
        **more,
        seconds=seconds,
        turns=turns,
    )


def events(step: Step, books: Bookkeeping, stop: StopRequest, count: int) -> dict[str, list[float]]:
    """Seconds of `count` events of each kind, and of the step before each."""
    state, cadence = step.state, step.config.cadence
    for _ in range(WARM_UP):
        step()
    for _ in range(step.config.train.steps // cadence.log_every // 2):
        state.sums += 1  # a point is the mean over the images since the last one
        state.seconds += 1
        books.log_point()
    kinds: dict[str, Callable[[], object]] = {
        "log point": books.log_point,
        "agreement": lambda: books.agree(stop),
        "checkpoint and archive": books.save,
        "nothing due": lambda: books.after_step(stop),
    }
    seconds: dict[str, list[float]] = {"step": []} | {name: [] for name in kinds}
    for name, call in kinds.items():
        while len(seconds[name]) < count:
            seconds["step"].append(time_of(step))
            books.next_agreement = state.step + 1
            if state.step % cadence.log_every:  # else something is due
                seconds[name].append(time_of(call))
    return seconds


def time_of(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
