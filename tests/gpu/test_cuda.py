"""Training on a CUDA device, with a world of one over nccl; skipped, and said so, where there is none."""

import h5py
import pytest

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare, run_rank

pytestmark = pytest.mark.gpu

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
    outcome = run_rank(rundir)
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


def test_deterministic_runs_on_the_gpu_are_equal_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _, one = trained(tmp_path / "one", train__deterministic=True)
    _, other = trained(tmp_path / "other", train__deterministic=True)
    assert (one == other).all()
