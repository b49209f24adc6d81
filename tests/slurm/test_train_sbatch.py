"""slurm/train.sbatch and submission through submitit, on a real Slurm."""

import sys
from pathlib import Path

import h5py
import pytest

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parent.parent.parent
TINY = (
    "data.source=synthetic",
    "model.width=0.25",
    "train.steps=20",
    "train.global_batch_size=16",
    "train.precision=fp32",
    "cadence.evaluate_every=20",
    "cadence.log_every=10",
)


def archive_of(runs: Path) -> h5py.File:
    (path,) = runs.glob("*/results.h5")
    return h5py.File(path, "r")


def test_train_sbatch_trains_with_two_tasks_and_leaves_a_finished_archive(cluster, tmp_path):
    words = ("cifar100_baby_mobilenet", *TINY, "--runs", str(tmp_path / "runs"))
    job = cluster.run(
        *("sbatch", "--parsable", "--ntasks-per-node=2", "--cpus-per-task=1", f"--output={tmp_path}/log"),
        *(str(ROOT / "slurm/train.sbatch"), *words),
    ).strip()
    state = cluster.wait(job, 240)
    assert state == "COMPLETED", (tmp_path / "log").read_text()
    with archive_of(tmp_path / "runs") as file:
        assert file.attrs["finished"]
        assert file["ledger/world_size"][()].tolist() == [2]
        assert file["ledger/job_id"].asstr()[0] == f"slurm-{job}.0"


def test_a_failing_job_under_sbatch_ends_with_a_non_zero_code_and_one_line(cluster, tmp_path):
    job = cluster.run(
        *("sbatch", "--parsable", f"--output={tmp_path}/log", str(ROOT / "slurm/train.sbatch")),
        *("cifar100_baby_mobilenet", "model.width=3", "--runs", str(tmp_path / "runs")),
    ).strip()
    assert cluster.wait(job, 120) == "FAILED"
    log = (tmp_path / "log").read_text()
    assert "the cap for task.kind=classify is below 100,000; try model.width=1.012" in log
    assert "Traceback" not in log


def test_a_run_stops_itself_before_the_time_limit_and_goes_on_with_the_next_job(cluster, tmp_path):
    # The limit is two minutes and a minute is kept free, so this many steps cannot be done in one stay.
    words = ["cifar100_baby_mobilenet", *TINY, "train.steps=10000", "train.global_batch_size=64"]
    words += ["cadence.evaluate_every=10000", "--runs", str(tmp_path / "runs")]
    job = cluster.run(
        *("sbatch", "--parsable", "--time=2", f"--output={tmp_path}/log", str(ROOT / "slurm/train.sbatch")), *words
    ).strip()
    assert cluster.wait(job, 180) == "COMPLETED"
    assert "(deadline)" in (tmp_path / "log").read_text()
    with archive_of(tmp_path / "runs") as file:
        assert not file.attrs["finished"]
        assert 0 < file["train/step"][-1] < 10000


def test_hpcvision_submit_trains_on_slurm_through_submitit(cluster, tmp_path):
    profile = tmp_path / "here.toml"
    profile.write_text('executor = "slurm"\ntime_limit_minutes = 10\npartition = "test"\ncpus_per_task = 1\n')
    command = [sys.executable, "-m", "hpcvision", "submit", "cifar100_baby_mobilenet", *TINY]
    command += ["--cluster", str(profile), "--processes", "2", "--runs", str(tmp_path / "runs")]
    said = cluster.run(*command)
    job = said.split(" as job ")[1].split()[0]
    assert cluster.wait(job, 240) == "COMPLETED"
    with archive_of(tmp_path / "runs") as file:
        assert file.attrs["finished"]
        assert file["ledger/world_size"][()].tolist() == [2]
