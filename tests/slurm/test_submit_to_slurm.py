"""`hpcvision submit` on a real two-host Slurm: what it refuses, what it asks for, and what comes of it."""

import json
import re
import time

import h5py
import numpy as np
import pytest
from real_cluster import ROOT, administer

from hpcvision.rundir import RunDir
from hpcvision.verify import verify

pytestmark = pytest.mark.slurm

PLACE = ["--cluster", "testcluster"]
GREEDY = 'account = "students"\npartition = "gpu"\nmemory = "per_node"\nmemory_gb = 900\n'


def losses(run):
    with h5py.File(run.results) as file:
        return file["train/loss"][()]


def test_two_nodes_with_two_tasks_each_train_one_run_with_the_losses_of_a_single_process(cluster):
    job = cluster.submit("plain.py", "--nodes", 2, "--processes", 2)
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    shared = cluster.only_run()
    with h5py.File(shared.results) as file:
        assert file["ledger/world_size"][()].tolist() == [4]
        assert file.attrs["finished"]
    assert set(re.findall(r"hostname=(node\d)", cluster.logs())) == {"node0", "node1"}
    cluster.hpcvision("train", "plain.py", "--processes", 1, "--runs", "alone")
    (alone,) = (cluster.home / "alone").glob("*/results.h5")
    np.testing.assert_allclose(losses(shared), losses(RunDir(alone.parent)), rtol=1e-4)


def test_a_run_is_found_by_status_while_it_waits_while_it_runs_and_when_it_is_finished(cluster):
    blocker = cluster.run(
        "sbatch", "--parsable", "-A", "students", "-p", "gpu", "-N2", "--exclusive", "--wrap=sleep 60"
    )
    job = cluster.submit("plain.py", "train.steps=10000")
    assert " waiting " in (waiting := cluster.hpcvision("status", "plain").stdout), waiting
    cluster.run("scancel", blocker.stdout.strip())
    cluster.until(lambda: " running " in cluster.hpcvision("status").stdout, "the run to run")
    cluster.until(lambda: re.search(r"on node\d: loss \d", cluster.hpcvision("status").stdout), "its first numbers")
    assert "1 process(es) on cpu" in cluster.hpcvision("logs", "plain", "-n", 5).stdout
    cancelled = cluster.hpcvision("cancel", "plain").stdout
    assert cancelled == f"cancelled 1 job(s): {job}\n"
    assert cluster.wait(job) == "CANCELLED"
    cluster.until(lambda: " stopped " in cluster.hpcvision("status").stdout, "the word that it was stopped")
    assert "it was cancelled; hpcvision resume goes on from its last checkpoint" in cluster.hpcvision("status").stdout


def test_a_stopped_run_is_submitted_again_by_resume_and_goes_on(cluster):
    job = cluster.submit("plain.py", "train.steps=1500")
    cluster.until(lambda: cluster.reached(10), "the first steps")
    cluster.hpcvision("cancel", "all")
    assert cluster.wait(job) == "CANCELLED"
    said = cluster.hpcvision("resume", "plain").stdout
    again = re.findall(r" as job (\d+) on", said)[0]
    assert cluster.wait(again) == "COMPLETED", cluster.logs()
    assert cluster.only_run().is_finished
    assert "going on from step" in cluster.logs()


def test_a_run_that_was_set_aside_by_fresh_is_not_resumed_beside_the_new_one(cluster):
    for more in ([], ["--fresh"]):
        cluster.submit("plain.py", "train.steps=3000", *more)
        cluster.until(lambda: cluster.reached(10), "the first steps")
        cluster.hpcvision("cancel", "all")
        cluster.until(lambda: not cluster.run("squeue", "-h", "--me").stdout, "the end of the job")
    assert any(".replaced-" in path.name for path in (cluster.home / "runs").iterdir())
    said = cluster.hpcvision("resume", "all").stdout
    assert re.fullmatch(r"plain-\w+", re.findall(r"submitted (.+) as job \d+ on", said)[0])
    assert len(cluster.run("squeue", "-h", "--me", "--array").stdout.splitlines()) == 1


def test_a_run_that_was_to_begin_afresh_keeps_its_place_when_slurm_refuses_the_new_job(cluster):
    assert cluster.wait(cluster.submit("plain.py")) == "COMPLETED"
    before = cluster.only_run().results.read_bytes()
    (cluster.home / "greedy.toml").write_text(GREEDY)
    assert "Slurm refuses the job: " in cluster.refusal("submit", "plain.py", "--cluster", "greedy.toml", "--fresh")
    assert cluster.only_run().results.read_bytes() == before
    assert " finished " in cluster.hpcvision("status").stdout


def test_runs_that_shared_a_job_share_one_again_when_they_are_resumed(cluster):
    cluster.hpcvision("submit", "plain.py", "train.steps=3000", *PLACE, "--seeds", "0-4", "--runs-per-job", 2)
    cluster.hpcvision("cancel", "all")
    cluster.until(lambda: not cluster.run("squeue", "-h", "--me").stdout, "the end of the jobs")
    assert "submitted 5 runs in 3 tasks as job" in cluster.hpcvision("resume", "all").stdout


def test_the_same_run_is_not_submitted_twice(cluster):
    job = cluster.submit("plain.py", "train.steps=10000")
    said = cluster.hpcvision("submit", "plain.py", "train.steps=10000", *PLACE).stdout
    assert f"is in the queue already as job {job}" in said
    assert len(cluster.run("squeue", "-h", "--me").stdout.splitlines()) == 1


def test_data_that_the_nodes_cannot_see_is_refused(cluster):
    words = ["submit", "plain.py", "data.source=addnist", *PLACE]
    assert "the nodes cannot see /tmp/data" in cluster.refusal(*words, HPCVISION_DATA="/tmp/data")


def test_again_lets_a_run_wait_for_the_job_that_it_is_in_and_both_are_known(cluster):
    first = cluster.submit("plain.py", "train.steps=10000")
    cluster.until(lambda: cluster.reached(10), "the first steps")
    second = cluster.submit("plain.py", "train.steps=10000", "--again")
    shown = cluster.run("squeue", "-h", "--me", "-o", "%i %T %r").stdout.splitlines()
    assert sorted(shown) == sorted([f"{first} RUNNING None", f"{second} PENDING Dependency"])
    assert sorted(cluster.hpcvision("cancel", "all").stdout.split(": ")[1].strip().split(", ")) == sorted(
        [first, second]
    )


def test_a_job_can_be_submitted_after_another(cluster):
    first = cluster.run("sbatch", "--parsable", "-A", "students", "-p", "gpu", "--wrap=sleep 5").stdout.strip()
    job = cluster.submit("plain.py", "--after", first)
    assert "it follows another job" in cluster.hpcvision("status").stdout
    assert cluster.wait(job) == "COMPLETED"


def test_wait_shows_the_log_until_the_run_is_finished_and_ends_with_3_for_one_that_fails(cluster):
    done = cluster.hpcvision("submit", "plain.py", *PLACE, "--wait")
    assert "1 process(es) on cpu" in done.stdout
    failed = cluster.hpcvision("submit", "plain.py", "optim.learning_rate=1e18", *PLACE, "--wait", check=False)
    assert failed.returncode == 3
    assert "not finite at step" in failed.stderr.splitlines()[-1]


def test_a_run_that_sbatch_started_is_known_to_status_and_not_submitted_again(cluster):
    options = ["--account=students", "--partition=gpu", "--cpus-per-task=1", "--output=job.log"]
    job = cluster.run("sbatch", "--parsable", *options, ROOT / "slurm/train.sbatch", "plain.py", "train.steps=10000")
    cluster.until(lambda: " running " in cluster.hpcvision("status", check=False).stdout, "the run to run")
    said = cluster.hpcvision("submit", "plain.py", "train.steps=10000", *PLACE).stdout
    assert f"is in the queue already as job {job.stdout.strip()}" in said


def test_a_dry_run_shows_the_exact_script_and_when_slurm_would_start_it_and_submits_nothing(cluster):
    shown = cluster.hpcvision("submit", "plain.py", *PLACE, "--dry-run").stdout
    assert re.search(r"^# Job \d+ to start at 20", shown, re.MULTILINE)
    assert cluster.run("squeue", "-h", "--me").stdout == ""
    assert cluster.runs() == []
    job = cluster.submit("plain.py")
    (script,) = (cluster.home / "runs").glob("*/submitted/*_submission.sh")
    wanted, found = (re.sub(r"%j|\d+", "N", text) for text in (shown.partition("# Job")[0], script.read_text()))
    assert wanted.strip() == found.strip()
    cluster.run("scancel", job)


def test_a_newer_sbatch_job_of_a_run_is_the_one_that_status_logs_and_cancel_mean(cluster):
    old = cluster.submit("plain.py", "train.steps=10000")
    cluster.until(lambda: cluster.reached(10), "the first steps")
    cluster.hpcvision("cancel", "all")
    assert cluster.wait(old) == "CANCELLED"
    options = ["--account=students", "--partition=gpu", "--cpus-per-task=1", "--output=job.log"]
    new = cluster.run("sbatch", "--parsable", *options, ROOT / "slurm/train.sbatch", "plain.py", "train.steps=10000")
    new = new.stdout.strip()
    cluster.until(lambda: cluster.starts() == 2, "the second stay")
    cluster.until(lambda: " running " in cluster.hpcvision("status").stdout, "the run to run")
    assert f" {new} " in cluster.hpcvision("status").stdout
    assert "going on from step" in cluster.hpcvision("logs", "plain").stdout
    assert cluster.hpcvision("cancel", "plain").stdout == f"cancelled 1 job(s): {new}\n"
    assert cluster.wait(new) == "CANCELLED"
    assert "on testcluster" in cluster.hpcvision("resume", "plain").stdout


def test_a_dry_run_tells_of_all_arrays_and_of_the_chain(cluster):
    shown = cluster.hpcvision("submit", "plain.py", *PLACE, "--seeds", "0-11", "--chain", 2, "--dry-run").stdout
    assert "#SBATCH --array=0-9%10" in shown
    assert "# the same again for arrays of 2 tasks" in shown
    assert "# then 1 more of each, every one with --dependency=afterany on the one before" in shown
    assert "# 12 run(s) in 24 job(s); nothing was submitted" in shown


def test_a_dry_run_says_that_the_disk_is_too_small(cluster):
    line = "hpcvision submit plain.py model.width=1 --cluster testcluster --dry-run"
    done = cluster.run("bash", "-c", f"ulimit -f 100; {line}", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "see ulimit -f" in done.stderr


def test_temporary_files_have_a_folder_of_their_own_on_every_node_of_a_job(cluster):
    (cluster.home / "own.toml").write_text(
        'account = "students"\npartition = "gpu"\nnodes = 2\nnode_folder = "/tmp/own-$USER-$SLURM_JOB_ID"\n'
    )
    said = cluster.hpcvision("submit", "plain.py", "--cluster", "own.toml").stdout
    job = re.findall(r" as job (\d+) on", said)[0]
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    words = ["-A", "students", "-p", "gpu", "--nodes=2", "bash", "-c", f"hostname; ls -d /tmp/own-hpcuser-{job}"]
    shown = cluster.run("srun", *words).stdout
    assert sorted(shown.split()) == sorted(["node0", "node1", *[f"/tmp/own-hpcuser-{job}"] * 2])


def test_twelve_runs_are_two_arrays_where_a_cluster_takes_ten_at_a_time_and_all_finish(cluster):
    said = cluster.hpcvision("submit", "plain.py", *PLACE, "--seeds", "0-11").stdout
    arrays = re.findall(r"submitted (\d+) runs as job (\d+) on", said)
    assert [count for count, _ in arrays] == ["10", "2"]
    cluster.until(lambda: all(run.is_finished for run in cluster.runs()), "all runs")
    assert_all_accounted_for(cluster, 12)


@pytest.mark.long
def test_twelve_runs_that_share_three_jobs_start_python_three_times(cluster):
    cluster.hpcvision("submit", "plain.py", *PLACE, "--seeds", "0-11", "--runs-per-job", 4)
    cluster.until(lambda: len(cluster.runs()) == 12 and all(run.is_finished for run in cluster.runs()), "all runs")
    assert_all_accounted_for(cluster, 12)
    stays = {
        event["job_id"] for run in cluster.runs() for event in map(json.loads, run.log.open()) if "job_id" in event
    }
    assert len(stays) == 3


@pytest.mark.long
def test_two_hundred_tiny_runs_in_one_call_are_all_trained_once(cluster):
    began = time.monotonic()
    said = cluster.hpcvision("submit", "plain.py", "train.steps=5", *PLACE, "--seeds", "0-199").stdout
    assert time.monotonic() - began < 60
    assert "7 runs in each job, as this cluster takes 30 more jobs of yours" in said
    cluster.until(lambda: sum(run.is_finished for run in cluster.runs()) == 200, "all runs", seconds=1200)
    assert_all_accounted_for(cluster, 200)


def assert_all_accounted_for(cluster, count):
    """Every run has one stay that reached the last step, and a valid archive."""
    assert len(cluster.runs()) == count
    for run in cluster.runs():
        assert [finding.words for finding in verify(run.results) if finding.verdict == "FAIL"] == []
        with h5py.File(run.results) as file:
            assert file.attrs["finished"]
            assert len(file["ledger/reason"]) == 1


def test_submitting_from_inside_a_job_takes_none_of_its_options(cluster):
    inner = "hpcvision submit plain.py --cluster testcluster"
    wrap = ["--account=students", "--partition=gpu", "--mem-per-cpu=777", "--cpus-per-task=2", "--output=outer.log"]
    outer = cluster.run("sbatch", "--parsable", *wrap, f"--wrap={inner}").stdout.strip()
    assert cluster.wait(outer) == "COMPLETED", cluster.logs()
    job = re.findall(r" as job (\d+) on", (cluster.home / "outer.log").read_text())[0]
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    shown = cluster.run("scontrol", "show", "job", job).stdout
    assert re.search(r"MinMemoryCPU=(1536M|1.50G)", shown), shown
    assert "NumCPUs=1" in shown


def test_a_failed_run_is_told_with_the_words_of_the_rank_that_failed(cluster):
    job = cluster.submit("plain.py", "optim.learning_rate=1e18", "--processes", 2)
    assert cluster.wait(job) == "FAILED"
    status = cluster.hpcvision("status").stdout
    assert " failed " in status
    assert "not finite at step" in status


@pytest.fixture
def lab():
    """An account of the user's below `students`, which alone the partitions name."""
    administer("sacctmgr", "-i", "add", "account", "lab", "parent=students")
    administer("sacctmgr", "-i", "add", "user", "hpcuser", "account=lab")
    yield "lab"
    administer("sacctmgr", "-i", "delete", "user", "hpcuser", "account=lab")
    administer("sacctmgr", "-i", "delete", "account", "lab")


def test_an_account_below_one_that_the_partition_takes_is_left_to_slurm(cluster, lab):
    (cluster.home / "lab.toml").write_text(f'account = "{lab}"\npartition = "gpu"\n')
    shown = cluster.hpcvision("submit", "plain.py", "--cluster", "lab.toml", "--dry-run").stdout
    assert "#SBATCH --account=lab" in shown


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--cluster", "nowhere"], "there is no cluster profile 'nowhere'; choose one of"),
        ([*PLACE, "--minutes", 1441], "--minutes=1441 is above the 1440 of partition gpu; give fewer"),
        ([*PLACE, "--nodes", 4], "--nodes=4 is above the 2 of partition gpu; give fewer"),
        (
            [*PLACE, "--gpus-per-node", 4],
            "4 GPUs a node cannot be had in partition gpu, whose nodes have 2 of type tesla",
        ),
        ([*PLACE, "--runs", "/tmp/mine"], "the nodes cannot see /tmp/mine, as every machine has its own /tmp; choose"),
        ([*PLACE, "data.source=addnist"], "hpcvision data fetch addnist"),
        (
            [*PLACE, "--processes", 4, "--gpus-per-node", 2],
            "--processes=4 on 2 GPUs a node: there is one process for each",
        ),
        ([*PLACE, "--after", "first"], "--after='first' is no id of a Slurm job; write a number"),
        ([*PLACE, "model.width=3"], "the cap for task.kind=classify is below 100,000"),
        ([*PLACE, "--seeds", "4-2"], "--seeds='4-2': write numbers and ranges with commas"),
        ([*PLACE, "--processes", 3], "train.global_batch_size=16 "),
        ([*PLACE, "--processes", 2, "--seeds", "0-99"], "needs runs of one process, these have 2"),
    ],
)
def test_what_can_be_known_to_fail_is_one_line_before_the_queue(cluster, words, complaint):
    line = cluster.refusal("submit", "plain.py", *words)
    assert complaint in line
    assert cluster.run("squeue", "-h", "--me").stdout == ""


@pytest.fixture
def _limits(running_cluster):
    """What a job exceeds is taken by sbatch all the same; the job would wait for ever."""
    del running_cluster
    administer("sacctmgr", "-i", "modify", "qos", "long", "set", "MaxWall=5")
    administer("scontrol", "update", "PartitionName=high", "AllowQos=normal", "MaxNodes=1")
    yield
    administer("sacctmgr", "-i", "modify", "qos", "long", "set", "MaxWall=-1")
    administer("scontrol", "update", "PartitionName=high", "AllowQos=ALL", "MaxNodes=UNLIMITED")


@pytest.mark.usefixtures("_limits")
def test_limits_of_a_qos_and_of_a_partition_are_one_line_before_the_queue(cluster):
    def refusal(partition, qos, *words):
        (cluster.home / "mine.toml").write_text(f'account = "students"\npartition = "{partition}"\n{qos}\n')
        return cluster.refusal("submit", "plain.py", "--cluster", "mine.toml", *words)

    qos = 'qos = "long"'
    assert "--minutes=6 is above the 5 of qos long; give fewer" in refusal("gpu", qos, "--minutes", 6)
    assert "partition high does not take qos 'long'; set qos to one of normal" in refusal("high", qos, "--minutes", 5)
    assert "--nodes=2 is above the 1 of partition high" in refusal("high", "", "--minutes", 5, "--nodes", 2)
    (cluster.home / "mine.toml").write_text(f'account = "students"\npartition = "gpu"\n{qos}\n')
    done = cluster.hpcvision("doctor", "--cluster", "mine.toml", check=False).stdout
    assert re.search(r"FAIL +time +--minutes=1440 is above the 5 of qos long", done), done
    assert cluster.run("squeue", "-h", "--me").stdout == ""


def test_the_limit_of_an_account_is_one_line_before_the_queue(cluster):
    of_the_user = ["user", "hpcuser", "where", "account=students", "set"]
    administer("sacctmgr", "-i", "modify", *of_the_user, "MaxWall=7")
    try:
        line = cluster.refusal("submit", "plain.py", *PLACE, "--minutes", 8)
        assert "--minutes=8 is above the 7 of account students; give fewer" in line
        assert "# Job" in cluster.hpcvision("submit", "plain.py", *PLACE, "--minutes", 7, "--dry-run").stdout
    finally:
        administer("sacctmgr", "-i", "modify", *of_the_user, "MaxWall=-1")


def test_a_partition_that_takes_no_jobs_is_one_line_before_the_queue(cluster):
    administer("scontrol", "update", "PartitionName=gpu", "State=INACTIVE")
    try:
        assert "partition gpu takes no jobs (INACTIVE); choose another" in cluster.refusal("submit", "plain.py", *PLACE)
    finally:
        administer("scontrol", "update", "PartitionName=gpu", "State=UP")


def test_an_account_in_capitals_is_the_same_account(cluster):
    (cluster.home / "mine.toml").write_text('account = "Students"\npartition = "gpu"\ntime_limit_minutes = 9\n')
    assert "# Job" in cluster.hpcvision("submit", "plain.py", "--cluster", "mine.toml", "--dry-run").stdout


@pytest.mark.parametrize(
    "line, complaint",
    [
        ('partition = "nope"', "there is no partition 'nope' on this cluster; choose one of test, gpu, high"),
        ('account = "guests"', "partition gpu does not take account 'guests'; set account to one of students"),
        ("requeue = true", "partition gpu does not take account 'guests', your default one; set account to one of"),
        ('account = "students"\nqos = "golden"', "qos 'golden' is not allowed here; yours are long, normal"),
    ],
)
def test_a_profile_that_the_cluster_would_refuse_is_one_line_before_the_queue(cluster, line, complaint):
    where = "" if "partition" in line else 'partition = "gpu"'
    (cluster.home / "mine.toml").write_text(f"{line}\n{where}\n")
    assert complaint in cluster.refusal("submit", "plain.py", "--cluster", "mine.toml")
    assert cluster.run("squeue", "-h", "--me").stdout == ""


def test_a_job_that_slurm_itself_refuses_is_one_line(cluster):
    (cluster.home / "mine.toml").write_text(GREEDY)
    assert "Slurm refuses the job: " in cluster.refusal("submit", "plain.py", "--cluster", "mine.toml")
