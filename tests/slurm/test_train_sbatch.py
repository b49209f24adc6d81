"""slurm/train.sbatch and `hpcvision script`: a run on Slurm without submitit."""

import re

import h5py
import pytest
from real_cluster import ROOT

pytestmark = pytest.mark.slurm

OPTIONS = ["--parsable", "--account=students", "--partition=gpu", "--cpus-per-task=1", "--output=job.log"]


def sbatch(cluster, *words):
    return cluster.run("sbatch", *OPTIONS, *words).stdout.strip()


def test_train_sbatch_trains_with_two_tasks_and_leaves_a_finished_archive(cluster):
    job = sbatch(cluster, "--ntasks-per-node=2", ROOT / "slurm/train.sbatch", "plain.py")
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    with h5py.File(cluster.only_run().results) as file:
        assert file.attrs["finished"]
        assert file["ledger/world_size"][()].tolist() == [2]
        assert file["ledger/job_id"].asstr()[0] == f"slurm-{job}.0"


def test_a_failing_job_under_sbatch_ends_with_a_non_zero_code_and_one_line(cluster):
    job = sbatch(cluster, ROOT / "slurm/train.sbatch", "plain.py", "model.width=3")
    assert cluster.wait(job) == "FAILED"
    log = (cluster.home / "job.log").read_text()
    assert "the cap for task.kind=classify is below 100,000; try model.width=" in log
    assert "Traceback" not in log


def test_a_run_under_train_sbatch_queues_itself_again_before_its_time_limit_and_finishes(cluster):
    words = ["plain.py", "train.steps=10000", "train.global_batch_size=128", "cadence.checkpoint_every=10000"]
    job = sbatch(cluster, "--partition=test", "--time=1", "--signal=USR2@15", ROOT / "slurm/train.sbatch", *words)
    cluster.until(lambda: re.search(r"\((deadline|SIGUSR2)\)", cluster.logs()), "the run to stop itself")
    cluster.until(lambda: cluster.starts() == 2, "the second stay")
    assert not list(cluster.home.glob(".hpcvision-again-*"))
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"


@pytest.mark.long
def test_where_nobody_tells_the_end_of_the_job_the_signal_stops_a_run_in_time(cluster):
    (cluster.home / "bin").mkdir(mode=0o755)
    # A fake one: the real one answers on every node of this cluster.
    (cluster.home / "bin/squeue").write_text("#!/bin/sh\nexit 1\n")
    (cluster.home / "bin/squeue").chmod(0o755)
    words = ["plain.py", "train.steps=10000", "train.global_batch_size=128", "cadence.checkpoint_every=10000"]
    options = ["--partition=test", "--time=1", "--signal=USR2@15"]
    path = f"{cluster.home}/bin:{ROOT}/.venv/bin:/usr/bin:/bin"
    job = sbatch(cluster, *options, f"--export=ALL,PATH={path}", ROOT / "slurm/train.sbatch", *words)
    cluster.until(lambda: "(SIGUSR2)" in cluster.logs(), "the run to stop itself")
    cluster.until(lambda: cluster.starts() == 2, "the second stay")
    cluster.run("scancel", job)


@pytest.fixture
def elsewhere(cluster):
    """Another folder of the user's."""
    cluster.run("mkdir", "elsewhere")
    return cluster.home / "elsewhere"


def test_the_script_that_hpcvision_writes_trains_by_itself_from_any_folder_and_logs_finds_its_log(cluster, elsewhere):
    script = cluster.hpcvision("script", "plain.py", "--cluster", "testcluster").stdout
    (elsewhere / "job.sh").write_text(script)
    bare = ["env", "-C", elsewhere, "-u", "HPCVISION_RUNS", "-u", "HPCVISION_DATA", "PATH=/usr/bin:/bin"]
    job = cluster.run(*bare, "sbatch", "--parsable", "job.sh").stdout.strip()
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert cluster.only_run().is_finished
    assert "1 process(es) on cpu" in cluster.hpcvision("logs", "plain", "-n", 50).stdout
    assert f" {job} " in cluster.hpcvision("status").stdout


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--minutes", 1441], "--minutes=1441 is above the 1440 of partition gpu"),
        (["model.width=3"], "the cap for task.kind=classify is below 100,000"),
        (["data.source=addnist"], "hpcvision data fetch addnist"),
        (["--runs", "/tmp/mine"], "the nodes cannot see /tmp/mine"),
    ],
)
def test_what_would_fail_is_said_instead_of_a_script(cluster, words, complaint):
    assert complaint in cluster.refusal("script", "plain.py", "--cluster", "testcluster", *words)
