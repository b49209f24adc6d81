"""slurm/train.sbatch and `hpcvision script`: a run on Slurm without submitit."""

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
    job = sbatch(cluster, "--partition=test", "--time=1", ROOT / "slurm/train.sbatch", *words)
    cluster.until(lambda: "(deadline)" in cluster.logs(), "the run to stop itself")
    cluster.until(lambda: cluster.starts() == 2, "the second stay")
    assert not list(cluster.home.glob(".hpcvision-again-*"))
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"


def test_the_script_that_hpcvision_writes_trains_by_itself(cluster):
    script = cluster.hpcvision("script", "plain.py", "--cluster", "testcluster").stdout
    (cluster.home / "job.sh").write_text(script)
    job = cluster.run("sbatch", "--parsable", "job.sh").stdout.strip()
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert cluster.only_run().is_finished
