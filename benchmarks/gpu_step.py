"""Steps per second on one CUDA device with and without the captured graph, and what bounds them.

    python benchmarks/gpu_step.py --json gpu_step.json

The arithmetic of the model (forward and backward: 6 x its multiply-adds per image) is set against a large matrix
product of the same precision, the memory traffic of a step against a large copy, both measured on the same device. The
traffic is an estimate: every operation reads its tensors and writes its results once, and no cache keeps them between
two operations. What neither of the two explains is the launching of operations, and kernels too small for the device.
"""

import os
import statistics
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from measuring import interleave, parser, ratio, report
from ranks import built, settle
from roofline import Traffic, copy_bandwidth, matrix_product_rate

from hpcvision import distributed
from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.distributed import Rank
from hpcvision.models.counting import multiply_adds
from hpcvision.training.step import WARM_UP_STEPS, Step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> int:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--job", default="cifar100_baby_mobilenet", help="whose model, images and optimiser")
    arguments_of.add_argument("--batch", type=int, default=512, help="images per step")
    arguments_of.add_argument("--steps", type=int, default=2000, help="steps of each round")
    arguments_of.add_argument("--rounds", type=int, default=3, help="rounds; the median counts")
    arguments_of.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a smoke run, tiny sizes")
    arguments = arguments_of.parse_args()
    is_smoke_run = arguments.device == "cpu"
    if is_smoke_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        arguments.batch, arguments.steps = 16, 3
    elif not torch.cuda.is_available():
        print("needs a CUDA device; nothing was measured")
        return 3

    job = load_job(arguments.job)
    changes = {"data.source": "synthetic", "train.global_batch_size": arguments.batch, "track": "auxiliary"}
    # Beyond its last step a schedule has no learning rate.
    taken = WARM_UP_STEPS + 8 + (1 + arguments.rounds) * arguments.steps
    config = apply(job, changes | {"train.steps": max(taken, job.train.steps)})
    with tempfile.TemporaryDirectory() as folder:
        rank = distributed.start(distributed.Place(), Path(folder))
    with nullcontext() if is_smoke_run else torch.cuda.stream(torch.cuda.Stream()):  # as in training/loop.py
        steps = {
            name: built(apply(config, {"train.cuda_graph": captures}), rank)
            for name, captures in {"operation by operation": False, "captured graph": True}.items()
        }
        for step in steps.values():
            for _ in range(WARM_UP_STEPS + 8):
                step()
        assert is_smoke_run or steps["captured graph"].graph is not None, "else Step has said why"
        one = steps["operation by operation"]
        one.hand_over()
        with Traffic() as traffic:
            one.compute()
        dtype = DTYPES[one.state.precision]
        side, megabytes = (128, 1) if is_smoke_run else (8192, 1024)
        rate, bandwidth = matrix_product_rate(side, dtype, rank), copy_bandwidth(megabytes, rank)
        cases = {name: lambda step=step: several(step, arguments.steps, rank) for name, step in steps.items()}
        seconds = interleave(cases, rounds=arguments.rounds)
    distributed.stop()

    operations = 6 * multiply_adds(config.model) * arguments.batch
    arithmetic, moving = operations / rate, traffic.bytes / bandwidth
    rows = []
    for name, values in seconds.items():
        per_step = statistics.median(values) / arguments.steps
        rows.append(
            {
                "step": name,
                "steps_per_s": 1 / per_step,
                "images_per_s": arguments.batch / per_step,
                "step_ms": 1000 * per_step,
                "percent_of_arithmetic": 100 * arithmetic / per_step,
                "percent_of_bandwidth": 100 * moving / per_step,
                "unexplained_ms": 1000 * (per_step - max(arithmetic, moving)),
                f"s_for_{job.train.steps}_steps": job.train.steps * per_step,
            }
        )
    here = {
        "matrix_product_TFLOP_per_s": rate / 1e12,
        "copy_GB_per_s": bandwidth / 1e9,
        "GFLOP_per_step": operations / 1e9,
        "GB_per_step": traffic.bytes / 1e9,
        "operations_per_step": traffic.operations,
        "arithmetic_ms": 1000 * arithmetic,
        "memory_ms": 1000 * moving,
    }
    report(
        f"{arguments.job}, batch {arguments.batch}, {one.state.precision}"
        + (" - SMOKE RUN ON THE CPU, NO MEASUREMENT" if is_smoke_run else ""),
        rows,
        ratios={"ratio_graph_over_no_graph": ratio(seconds["operation by operation"], seconds["captured graph"])},
        json_file=arguments.json,
        **here,
        is_measurement=not is_smoke_run,
        seconds_of_rounds=seconds,
    )
    for name, value in here.items():
        print(f"{name} {value:,.4g}")
    return 0


def several(step: Step, count: int, rank: Rank) -> None:
    """`count` steps, to the end of the last."""
    for _ in range(count):
        step()
    settle(rank)


if __name__ == "__main__":
    sys.exit(main())
