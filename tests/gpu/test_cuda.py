"""Training on a CUDA device, with a world of one over nccl; skipped, and said so, where there is none."""

import os
import shutil

import h5py
import pytest
import torch

from hpcvision import distributed
from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare, run_rank
from hpcvision.rundir import RunDir
from hpcvision.stopping import StopRequest
from hpcvision.training import state as states
from hpcvision.training.precision import set_arithmetic
from hpcvision.training.step import WARM_UP_STEPS, Step
from hpcvision.training.tasks import TASKS

pytestmark = pytest.mark.gpu

# Torch reads it once, at the first matrix product: the deterministic tests need it from the start.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

TINY = {
    "data.source": "synthetic",
    "train.steps": 30,
    "train.global_batch_size": 64,
    "optim.learning_rate": 0.05,
    "optim.warmup_steps": 5,
    "cadence.log_every": 10,
    "cadence.evaluate_every": 30,
}


def trained(tmp_path, **changes):
    overrides = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    config = apply(load_job("cifar100_baby_mobilenet"), overrides)
    rundir = prepare(config, tmp_path)
    outcome = run_rank(rundir, StopRequest())
    assert outcome["finished"]
    with h5py.File(rundir.results) as file:
        return file["train/loss"][:], file["weights/raw/classifier.weight"][:]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_the_gpu_finishes_and_its_loss_falls(tmp_path, precision):
    loss, _ = trained(tmp_path, train__precision=precision)
    assert loss[-1] < loss[0]


def test_fp32_on_the_gpu_starts_with_the_losses_of_the_cpu(tmp_path, monkeypatch):
    on_gpu, _ = trained(tmp_path / "gpu", train__precision="fp32", model__dropout=0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    on_cpu, _ = trained(tmp_path / "cpu", train__precision="fp32", model__dropout=0)
    assert abs(on_gpu[0] - on_cpu[0]) < 1e-3


def test_deterministic_runs_on_the_gpu_are_equal_bit_for_bit(tmp_path):
    _, one = trained(tmp_path / "one", train__deterministic=True)
    _, other = trained(tmp_path / "other", train__deterministic=True)
    assert (one == other).all()


@pytest.fixture
def built(tmp_path):
    """A function that gives a Step in a world of one over nccl, on a stream of its own as in training."""
    rank = distributed.start(distributed.Place(), tmp_path)
    assert torch.distributed.get_backend() == "nccl"
    with torch.cuda.stream(torch.cuda.Stream()):

        def build(say=lambda _: None, job="cifar100_baby_mobilenet", **changes):
            overrides = TINY | {key.replace("__", "."): value for key, value in changes.items()}
            config = apply(load_job(job), overrides)
            set_arithmetic(config.train, rank)
            precision = "bf16" if config.train.precision == "auto" else config.train.precision
            task = TASKS[config.task.kind](config, rank, precision)
            return Step(config, states.fresh(config, rank, len(task.metric_names), precision), task, rank, say)

        yield build
    distributed.stop()


def mean_loss(step, steps):
    step.state.sums.zero_()
    for _ in range(steps):
        step()
    loss, *_, count = step.state.sums.tolist()  # of classifiers also those that are right
    return loss / count


MUON_AND_CUTMIX = {"job": "cifar100_compact"}
GENERATOR = {
    "job": "cifar100_ddpm_residual",
    "model__width": 0.25,
    "optim__learning_rate": 1e-3,
    "train__precision": "bf16",
}


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"train__precision": "fp32"}, {"train__precision": "fp16"}, {"ema__every": 7}),
        *({"optim__gradient_clip": 1.0}, MUON_AND_CUTMIX, GENERATOR, GENERATOR | {"train__precision": "fp16"}),
    ],
    ids=str,
)
def test_captured_and_eager_steps_agree_in_loss_after_200_steps(built, changes):
    # Else two runs of the same kind part as well: cuDNN may add in another order, and training makes much of it.
    changes = {"train__steps": 210, "train__deterministic": True} | changes
    said = []
    captured = built(said.append, **changes)
    eager = built(train__cuda_graph=False, **changes)
    for step in (captured, eager):
        mean_loss(step, 190)
    assert said == []
    assert captured.graph is not None
    assert eager.graph is None
    assert abs(mean_loss(captured, 10) - mean_loss(eager, 10)) < 1e-3


@pytest.mark.parametrize("changes", [{}, MUON_AND_CUTMIX])
def test_a_captured_step_does_not_make_the_host_wait(built, changes):
    step = built(train__steps=100, **changes)
    for _ in range(WARM_UP_STEPS + 1):
        step()
    assert step.graph is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_generator_trains(tmp_path, capfd):
    changes = {"train.steps": 30, "train.global_batch_size": 16, "data.source": "synthetic", "model.width": 0.1}
    changes |= {"sample.steps": 3, "sample.images": 4, "sample.interpolation_pairs": 0, "optim.warmup_steps": 2}
    rundir = prepare(apply(load_job("cifar100_ddpm_small"), changes), tmp_path)
    assert run_rank(rundir, StopRequest())["finished"]
    assert "no CUDA graph" not in "".join(capfd.readouterr())


def test_a_deterministic_run_that_goes_on_equals_the_undisturbed_one_bit_for_bit(tmp_path):
    changes = TINY | {"train.deterministic": True, "cadence.checkpoint_every": 15}
    whole = prepare(apply(load_job("cifar100_baby_mobilenet"), changes), tmp_path / "whole")
    assert run_rank(whole, StopRequest())["finished"]
    again = RunDir(tmp_path / "again" / whole.folder.name)
    shutil.copytree(whole.folder, again.folder)
    again.previous_checkpoint.replace(again.checkpoint)  # of step 15
    lines = again.log.read_text().splitlines(keepends=True)
    again.log.write_text("".join(line for line in lines if '"finished"' not in line))
    assert run_rank(again, StopRequest())["finished"]
    with h5py.File(whole.results) as one, h5py.File(again.results) as other:
        for kind in ("raw", "ema"):
            for name in one[f"weights/{kind}"]:
                assert (one[f"weights/{kind}/{name}"][()] == other[f"weights/{kind}/{name}"][()]).all(), name
