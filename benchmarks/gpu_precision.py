"""What each precision does to the speed and the loss of a diffusion model on one CUDA device.

    python benchmarks/gpu_precision.py --json gpu_precision.json

The job `cifar100_ddpm_residual` (paper B's, which used torch's automatic mixed precision) from the same weights with
the same images, noise and timesteps: fp32 without and with TF32, bf16, and fp16 with a GradScaler. The cases take
turns; the loss is the mean over the same steps of each, its difference from fp32 without TF32 is given in percent.
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

from hpcvision import distributed
from hpcvision.config import RunConfig, apply
from hpcvision.config.catalogue import load_job
from hpcvision.distributed import Rank
from hpcvision.training.precision import set_arithmetic
from hpcvision.training.step import WARM_UP_STEPS, Step

CASES = {
    "fp32": {"train.precision": "fp32", "train.allow_tf32": False},
    "tf32": {"train.precision": "fp32", "train.allow_tf32": True},
    "bf16": {"train.precision": "bf16"},
    "fp16": {"train.precision": "fp16"},
}


def main() -> int:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--job", default="cifar100_ddpm_residual", help="whose model, images and optimiser")
    arguments_of.add_argument("--batch", type=int, default=128, help="images per step")
    arguments_of.add_argument("--steps", type=int, default=200, help="steps of each turn")
    arguments_of.add_argument("--rounds", type=int, default=5, help="turns of every case; the median counts")
    arguments_of.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a smoke run, tiny sizes")
    arguments = arguments_of.parse_args()
    is_smoke_run = arguments.device == "cpu"
    changes = {"data.source": "synthetic", "train.global_batch_size": arguments.batch}
    cases = CASES
    if is_smoke_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        arguments.batch, arguments.steps, arguments.rounds = 4, 2, 2
        changes |= {"train.global_batch_size": 4, "model.width": 0.25}
        cases = {name: CASES[name] for name in ("fp32", "bf16")}  # a CPU has no TF32, and fp16 no scaler there
    elif not torch.cuda.is_available():
        print("needs a CUDA device; nothing was measured")
        return 3
    config = apply(load_job(arguments.job), changes)
    with tempfile.TemporaryDirectory() as folder:
        rank = distributed.start(distributed.Place(), Path(folder))
    with nullcontext() if is_smoke_run else torch.cuda.stream(torch.cuda.Stream()):  # as in training/loop.py
        configs = {name: apply(config, case) for name, case in cases.items()}
        steps = {name: built(one, rank) for name, one in configs.items()}
        turns = {name: lambda name=name: turn(steps[name], configs[name], arguments.steps, rank) for name in cases}
        for name in cases:
            turn(steps[name], configs[name], WARM_UP_STEPS + 8, rank)
        losses = {name: steps[name].state.sums.zero_() for name in cases}
        seconds = interleave(turns, rounds=arguments.rounds, warm_up=0)
        losses = {name: float(sums[0] / sums[-1]) for name, sums in losses.items()}
    distributed.stop()
    rows = [
        {
            "precision": name,
            "steps_per_s": arguments.steps / statistics.median(values),
            "images_per_s": arguments.batch * arguments.steps / statistics.median(values),
            "times_as_fast_as_fp32": ratio(seconds["fp32"], values),
            "mean_loss": losses[name],
            "percent_from_fp32": 100 * (losses[name] / losses["fp32"] - 1),
        }
        for name, values in seconds.items()
    ]
    report(
        f"{arguments.job}, batch {arguments.batch}"
        + (" - SMOKE RUN ON THE CPU, NO MEASUREMENT" if is_smoke_run else ""),
        rows,
        ratios={f"ratio_{name}_over_fp32": ratio(seconds["fp32"], values) for name, values in seconds.items()},
        json_file=arguments.json,
        is_measurement=not is_smoke_run,
        seconds_of_rounds=seconds,
    )
    return 0


def turn(step: Step, config: RunConfig, count: int, rank: Rank) -> None:
    """`count` steps, to the end of the last, with the switches of this case."""
    set_arithmetic(config.train, rank)
    for _ in range(count):
        step()
    settle(rank)


if __name__ == "__main__":
    sys.exit(main())
