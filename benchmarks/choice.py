"""What a job chooses by itself (processes, threads of each, precision) against all other ways to use the cores.

    python benchmarks/choice.py --rounds 4 --json choice.json

Every round starts the processes of every way anew, one way after the other; on the CPU, with drawn images.
"""

import os
import statistics
from typing import Any

from measuring import parser, ratio, report
from ranks import timed

from hpcvision.config import RunConfig, apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.local import choose_processes

Way = tuple[int, int, str]
"""Processes, threads of each, precision."""


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--job", default="cifar100_baby_mobilenet", help="whose choice")
    arguments_of.add_argument("--rounds", type=int, default=4, help="passes over all ways")
    arguments_of.add_argument("--blocks", type=int, default=3, help="timed blocks in each pass; the median counts")
    arguments_of.add_argument("--images", type=int, default=5120, help="images of a block, in whole steps")
    arguments = arguments_of.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    config = apply(load_job(arguments.job), {"data.source": "synthetic"})
    batch = config.train.global_batch_size
    steps = max(1, arguments.images // batch)
    open_precisions = ["fp32", "bf16"] if config.train.precision == "auto" else [config.train.precision]
    choice = chosen(config)
    ways = list(dict.fromkeys([*grid(batch), choice]))
    seen: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way in ways:
            processes, threads, precision = way
            set_so = apply(config, {"train.precision": precision})
            seen[way].append(
                timed(set_so, processes=processes, threads=threads, steps=steps, blocks=arguments.blocks, warm_up=5)
            )

    def seconds(way: Way) -> list[float]:
        return [one["seconds_per_step"] for one in seen[way]]

    by_time = sorted(ways, key=lambda way: statistics.median(seconds(way)))
    rows = [
        {
            "processes": way[0],
            "threads_each": way[1],
            "precision": way[2],
            "step_ms": 1000 * statistics.median(seconds(way)),
            "images_per_s": batch / statistics.median(seconds(way)),
            "note": "the job's choice" if way == choice else "" if way[2] in open_precisions else "not the job's",
        }
        for way in by_time
    ]
    best = next(way for way in by_time if way[2] in open_precisions)
    report(
        f"{arguments.job}, batch {batch}",
        rows,
        ratios={
            "ratio_choice_over_best": ratio(seconds(best), seconds(choice)),
            "ratio_choice_over_best_of_any_precision": ratio(seconds(by_time[0]), seconds(choice)),
        },
        json_file=arguments.json,
        choice=choice,
        rounds=[{"way": way, "seen": seen[way]} for way in ways],
    )


def grid(batch: int) -> list[Way]:
    """All ways with whole shares: processes x threads divides the number of cores, and processes the batch."""
    cores = len(os.sched_getaffinity(0))
    divisors = [number for number in range(1, cores + 1) if cores % number == 0]
    return [
        (processes, threads, precision)
        for processes in divisors
        for threads in divisors
        for precision in ("fp32", "bf16")
        if cores % (processes * threads) == 0 and batch % processes == 0
    ]


def chosen(config: RunConfig) -> Way:
    """What a run takes by itself: the number that the launcher chooses, and what its processes say of themselves."""
    processes = choose_processes(config)
    said = timed(config, processes=processes, steps=1, blocks=1, warm_up=0)
    return processes, said["threads"], said["precision"]


if __name__ == "__main__":
    main()
