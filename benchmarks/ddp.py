"""Step time on 1, 2 and 4 processes, and what their exchange of gradients costs; on the CPU, with drawn images.

    python benchmarks/ddp.py --rounds 4 --json ddp.json

Every round starts the processes of every case anew, one case after the other.
"""

import os
import statistics

from measuring import parser, ratio, report
from ranks import timed

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--job", default="cifar100_baby_mobilenet", help="whose model, images and optimiser")
    arguments_of.add_argument("--batch", type=int, default=512, help="images per step of all processes together")
    arguments_of.add_argument("--rounds", type=int, default=4, help="passes over all cases")
    arguments_of.add_argument("--blocks", type=int, default=3, help="timed blocks in each pass; the median counts")
    arguments_of.add_argument("--steps", type=int, default=10, help="steps of a block")
    arguments = arguments_of.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    config = apply(load_job(arguments.job), {"data.source": "synthetic", "train.global_batch_size": arguments.batch})
    cores = len(os.sched_getaffinity(0))
    cases = list(dict.fromkeys([(1, 1), (2, 1), (4, 1), (1, 2), (1, cores)]))
    seen: dict[tuple[int, int], list[dict[str, float]]] = {case: [] for case in cases}

    for _ in range(arguments.rounds):
        for processes, threads in cases:
            blocks, steps = arguments.blocks, arguments.steps
            one = timed(
                config, processes=processes, threads=threads, steps=steps, blocks=blocks, warm_up=5, exchange=True
            )
            seen[processes, threads].append(one)

    def median(case: tuple[int, int], name: str) -> float:
        return statistics.median(one[name] for one in seen[case])

    def seconds(case: tuple[int, int]) -> list[float]:
        return [one["seconds_per_step"] for one in seen[case]]

    rows = [
        {
            "processes": processes,
            "threads_each": threads,
            "step_ms": 1000 * median(case, "seconds_per_step"),
            "images_per_s": arguments.batch / median(case, "seconds_per_step"),
            "without_exchange_ms": 1000 * median(case, "seconds_without_exchange"),
            "exchange_ms": 1000 * median(case, "seconds_of_exchange"),
            "exchange_percent": statistics.median(
                100 * one["seconds_of_exchange"] / one["seconds_per_step"] for one in seen[case]
            ),
            "bare_all_reduce_ms": 1000 * median(case, "seconds_of_bare_all_reduce"),
            "note": "more than cores" if processes * threads > cores else "",
        }
        for case in cases
        for processes, threads in [case]
    ]
    report(
        f"{arguments.job}, batch {arguments.batch}, {seen[cases[0]][0]['precision']}",
        rows,
        ratios={
            "ratio_two_processes_over_one": ratio(seconds((1, 1)), seconds((2, 1))),
            "ratio_two_single_thread_processes_over_one_two_thread_process": ratio(seconds((1, 2)), seconds((2, 1))),
        },
        json_file=arguments.json,
        rounds=[{"processes": case[0], "threads_each": case[1], "seen": seen[case]} for case in cases],
    )


if __name__ == "__main__":
    main()
