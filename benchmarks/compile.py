"""Eager steps, torch.compile, and on CUDA the captured graph: warm-up, step time and memory, in fp32 and bf16.

    python benchmarks/compile.py --rounds 4 --json compile.json

Every case runs in a process of its own, because of the memory, and every round starts all of them anew, one after the
other. Nothing compiled before is reused. The world is one process with the threads that the job chooses itself.
"""

import statistics

import torch
from measuring import parser, ratio, report
from ranks import timed

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.training.step import WARM_UP_STEPS

# (train.compile, train.cuda_graph)
ON_CPU = {"eager": (False, False), "compiled": (True, False)}
ON_CUDA = {"graph": (False, True), "compiled_graph": (True, True)}


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--job", default="cifar100_baby_mobilenet", help="whose model, images and optimiser")
    arguments_of.add_argument("--batch", type=int, default=512, help="images per step")
    arguments_of.add_argument("--rounds", type=int, default=4, help="passes over all cases")
    arguments_of.add_argument("--blocks", type=int, default=3, help="timed blocks in each pass; the median counts")
    arguments_of.add_argument("--steps", type=int, default=10, help="steps of a block")
    arguments = arguments_of.parse_args()

    kinds = ON_CPU | (ON_CUDA if torch.cuda.is_available() else {})
    if kinds == ON_CPU:
        print(f"no CUDA device: left out {', '.join(ON_CUDA)}")
    drawn = {"data.source": "synthetic", "train.global_batch_size": arguments.batch}
    cases = {(kind, precision): kinds[kind] for precision in ("fp32", "bf16") for kind in kinds}
    # The graph is captured after so many steps, which then belongs to the warm-up in every case.
    warm_up = WARM_UP_STEPS + 3
    seen: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for (kind, precision), (compiles, captures) in cases.items():
            chosen = {"train.precision": precision, "train.compile": compiles, "train.cuda_graph": captures}
            config = apply(load_job(arguments.job), drawn | chosen)
            one = timed(config, steps=arguments.steps, blocks=arguments.blocks, warm_up=warm_up)
            seen[kind, precision].append(one)

    def seconds(kind: str, precision: str) -> list[float]:
        return [one["seconds_per_step"] for one in seen[kind, precision]]

    def median(case: tuple[str, str], name: str) -> float:
        return statistics.median(one[name] for one in seen[case])

    rows = [
        {
            "case": kind.replace("_", " and "),
            "precision": precision,
            f"first_{warm_up}_steps_s": median((kind, precision), "warm_up_seconds"),
            "step_ms": 1000 * median((kind, precision), "seconds_per_step"),
            "images_per_s": arguments.batch / median((kind, precision), "seconds_per_step"),
            "peak_memory_MB": median((kind, precision), "megabytes"),
            "note": ""
            if all(one["is_graph"] == captures for one in seen[kind, precision])
            else "no graph was captured",
        }
        for (kind, precision), (_, captures) in cases.items()
    ]
    # Ours is what the job takes by itself: the captured graph where there is CUDA, else eager steps.
    ours = "graph" if "graph" in kinds else "eager"
    report(
        f"{arguments.job}, batch {arguments.batch}, one process, {seen['eager', 'fp32'][0]['threads']} threads",
        rows,
        ratios={
            f"ratio_{ours}_over_{kind}_{precision}": ratio(seconds(kind, precision), seconds(ours, precision))
            for kind, precision in cases
            if kind != ours
        },
        json_file=arguments.json,
        memory="max_memory_allocated" if torch.cuda.is_available() else "largest resident memory of the process",
        rounds=[{"case": kind, "precision": precision, "seen": seen[kind, precision]} for kind, precision in cases],
    )


if __name__ == "__main__":
    main()
