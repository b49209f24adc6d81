"""A site that keeps no accounts: sacct and sacctmgr fail, and every command is still right."""

import re

import pytest
from real_cluster import start_cluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", autouse=True)
def _without_accounting(running_cluster):
    del running_cluster
    start_cluster("--no-accounting")
    yield
    start_cluster()


def test_submit_status_logs_cancel_and_resume_work_without_accounting(cluster):
    assert cluster.run("sacct", check=False).returncode != 0
    job = cluster.submit("plain.py", "train.steps=3000")
    cluster.until(lambda: " running " in cluster.hpcvision("status").stdout, "the run to run")
    cluster.until(lambda: cluster.reached(10), "the first steps")
    assert "plain-" in cluster.hpcvision("logs", "plain", "-n", 100).stdout
    cluster.hpcvision("cancel", "all")
    assert cluster.wait(job) == "CANCELLED"
    assert "it was cancelled; hpcvision resume goes on from its last checkpoint" in cluster.hpcvision("status").stdout
    again = re.findall(r" as job (\d+) on", cluster.hpcvision("resume", "all").stdout)[0]
    assert cluster.wait(again) == "COMPLETED", cluster.logs()
    assert " finished " in cluster.hpcvision("status").stdout


def test_a_failed_run_and_a_refused_one_are_told_without_accounting(cluster):
    job = cluster.submit("plain.py", "optim.learning_rate=1e18")
    assert cluster.wait(job) == "FAILED"
    assert "not finite at step" in cluster.hpcvision("status").stdout
    complaint = "--nodes=4 is above the 2 of partition gpu"
    assert complaint in cluster.refusal("submit", "plain.py", "--cluster", "testcluster", "--nodes", 4)


def test_doctor_only_warns_that_there_is_no_accounting(cluster):
    said = cluster.hpcvision("doctor", "--cluster", "testcluster").stdout
    assert re.search(r"WARN +accounting", said)
    assert "FAIL" not in said


def test_init_script_seeds_and_chains_work_without_accounting(cluster):
    cluster.hpcvision("init", "--partition", "gpu", "-o", "here.toml")
    written = (cluster.home / "here.toml").read_text()
    assert "\naccount" not in written
    assert 'partition = "gpu"' in written
    words = ["--cluster", "here.toml", "--gpus-per-node", 0]
    (cluster.home / "job.sh").write_text(cluster.hpcvision("script", "plain.py", *words).stdout)
    job = cluster.run("sbatch", "--parsable", "job.sh").stdout.strip()
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    said = cluster.hpcvision("submit", "plain.py", *words, "--seeds", "0-2", "--chain", 2).stdout
    assert "is finished already" in said
    assert "submitted 2 runs as job" in said
    cluster.until(lambda: sum(run.is_finished for run in cluster.runs()) == 3, "all runs")
    assert len(re.findall(" finished ", cluster.hpcvision("status").stdout)) == 3
