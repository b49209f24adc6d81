"""What a queue does to a run: time limits, preemption, kills, lost nodes; the weights come out bit for bit the same."""

import fcntl
import os
import signal
import time
from functools import cache
from pathlib import Path

import h5py
import pytest
from real_cluster import FOLDER, JOB, administer, exact_content, start_cluster, steps_in, train_here

pytestmark = pytest.mark.slurm

PLACE = ["--cluster", "testcluster"]
MINUTE = 'account = "students"\npartition = "test"\ntime_limit_minutes = 1\n'


def run_of(seconds):
    """Words of a run of about so many seconds of steps."""
    steps = steps_in(seconds)
    return ["plain.py", f"train.steps={steps}", "train.global_batch_size=96", "cadence.checkpoint_every=500"]


@pytest.fixture(scope="module")
def short():
    return run_of(20)


@pytest.fixture(scope="module")
def long():
    """More than a stay with a limit of a minute holds, also without the notice that Slurm gives 30 s before its end.

    And more than Slurm takes to miss a node, and to begin elsewhere.
    """
    return run_of(50)


# Signals are blocked from the first moment, and nothing can unblock them.
DEAF = """
import signal
mask = signal.pthread_sigmask
mask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGCONT})
signal.pthread_sigmask = lambda how, signals: set() if how == signal.SIG_UNBLOCK else mask(how, signals)
"""


@pytest.fixture(scope="module")
def undisturbed(running_cluster, tmp_path_factory):
    """A function that gives what a run ends in when nobody disturbs it: its losses and weights."""
    del running_cluster
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "plain.py").write_text(JOB)

    @cache
    def content(*words):
        train_here(folder, *words, "--processes", "1", "--runs", words[1])
        (path,) = (folder / words[1]).glob("*/results.h5")
        return exact_content(path)

    return content


def assert_finished_exactly(cluster, expected):
    run = cluster.only_run()
    assert run.is_finished, cluster.logs()
    assert exact_content(run.results) == expected


def reasons(run):
    """Why each stay ended."""
    with h5py.File(run.results) as file:
        return file["ledger/reason"].asstr()[()].tolist()


def processes_on(node):
    """Numbers of the ranks on a host, as the machine counts them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            settings = dict(
                word.split(b"=", 1) for word in (path / "environ").read_bytes().split(b"\0") if b"=" in word
            )
        except OSError:
            continue
        is_python = words[0].endswith(b"python")  # srun has the same words after it
        if is_python and b"submitit.core._submit" in words and settings.get(b"SLURMD_NODENAME") == node.encode():
            found.append((int(settings.get(b"SLURM_PROCID", b"-1")), int(path.name)))
    return [pid for rank, pid in sorted(found) if rank >= 0]


def test_every_task_of_an_array_queues_itself_again_at_its_time_limit_and_ends_with_the_exact_weights(
    cluster, undisturbed, long
):
    (cluster.home / "minute.toml").write_text(MINUTE)
    cluster.hpcvision("submit", *long, "--seeds", "0-1", "--cluster", "minute.toml")
    cluster.until(lambda: len(cluster.runs()) == 2 and all(run.is_finished for run in cluster.runs()), "both runs")
    for run in cluster.runs():
        assert reasons(run)[0] in ("deadline", "SIGUSR2")
        assert reasons(run)[-1] == "finished"
    (first,) = (run for run in cluster.runs() if run.read_config().seed == 0)
    assert exact_content(first.results) == undisturbed(*long)


@pytest.mark.long
def test_a_chain_of_jobs_ends_with_the_exact_weights_and_what_is_left_of_it_ends_at_once(cluster, undisturbed, long):
    (cluster.home / "minute.toml").write_text(MINUTE)
    cluster.hpcvision("submit", *long, "--cluster", "minute.toml", "--chain", 5)
    cluster.until(lambda: cluster.run("squeue", "-h", "--me").stdout == "", "the end of the chain")
    assert_finished_exactly(cluster, undisturbed(*long))
    with h5py.File(cluster.only_run().results) as file:
        stays = file["ledger/job_id"].asstr()[()].tolist()
    assert 2 <= len(stays) == len(set(stays)) < 5


def test_a_link_of_a_chain_waits_for_a_process_that_still_trains_in_the_folder_instead_of_using_up_the_chain(cluster):
    blocker = cluster.run("sbatch", "--parsable", "-A", "students", "-p", "gpu", "--wrap=sleep 600").stdout.strip()
    job = cluster.submit("plain.py", "--chain", 3, "--processes", 2, "--after", blocker)
    with (cluster.only_run().folder / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cluster.run("scancel", blocker)
        cluster.until(lambda: "this job waits for it" in cluster.logs(), "a link that waits")
        time.sleep(12)  # two more looks
        first, *others = cluster.run("squeue", "-h", "--me", "--sort=i", "-o", "%i %T").stdout.splitlines()
        assert first.endswith("RUNNING")
        assert [line.split()[1] for line in others] == ["PENDING"] * 2
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    with h5py.File(cluster.only_run().results) as file:
        assert file["ledger/job_id"].asstr()[()].tolist() == [f"slurm-{first.split()[0]}.0"]


@pytest.mark.parametrize("times", [2, pytest.param(5, marks=pytest.mark.long)])
def test_a_run_that_is_preempted_again_and_again_ends_with_the_exact_weights(cluster, undisturbed, long, times):
    job = cluster.submit(*long, "--minutes", 5)
    urgent = ["-A", "students", "-p", "high", "-N2", "--exclusive", "--time=1", "--wrap=sleep 1", "--output=/dev/null"]
    for stay in range(1, times + 1):
        cluster.until(lambda stay=stay: cluster.starts() == stay, f"stay {stay}")
        time.sleep(2)
        other = cluster.run("sbatch", "--parsable", *urgent).stdout.strip()
        assert cluster.wait(other) == "COMPLETED"
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert_finished_exactly(cluster, undisturbed(*long))
    assert cluster.starts() == times + 1


def test_a_killed_rank_ends_all_of_them_within_a_minute_and_status_names_it(cluster, short):
    job = cluster.submit(*short, "--nodes", 2)
    cluster.until(lambda: cluster.reached(10), "the first steps")
    (victim,) = processes_on("node1")
    os.kill(victim, signal.SIGKILL)
    assert cluster.wait(job, seconds=60) == "FAILED"
    status = cluster.hpcvision("status").stdout
    assert " failed " in status
    assert "rank 1" in status
    again = cluster.hpcvision("resume", "all").stdout
    assert "submitted" in again


@pytest.fixture
def both_nodes():
    """Both hosts are up again when the test is over."""
    yield
    for node in ("node0", "node1"):
        administer("ip", "link", "set", f"hv-{node}", "up")
    start_cluster()


@pytest.mark.long
@pytest.mark.usefixtures("both_nodes")
def test_a_run_whose_node_is_set_down_goes_on_elsewhere_and_ends_with_the_exact_weights(cluster, undisturbed, short):
    job = cluster.submit(*short)
    cluster.until(lambda: cluster.reached(500), "the first checkpoint")
    node = cluster.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    administer("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert_finished_exactly(cluster, undisturbed(*short))
    assert cluster.starts() == 2


@pytest.mark.usefixtures("both_nodes")
def test_a_run_whose_node_is_lost_with_its_network_goes_on_elsewhere_and_ends_with_the_exact_weights(
    cluster, undisturbed, short
):
    job = cluster.submit(*short)
    cluster.until(lambda: cluster.reached(500), "the first checkpoint")
    node = cluster.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    administer("ip", "link", "set", f"hv-{node}", "down")
    for pid in processes_on(node):
        os.kill(pid, signal.SIGKILL)
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert_finished_exactly(cluster, undisturbed(*short))
    assert cluster.starts() == 2


@pytest.mark.usefixtures("both_nodes")
def test_a_node_that_is_cut_off_but_still_writes_and_its_successor_do_not_train_one_run_together(
    cluster, undisturbed, long
):
    job = cluster.submit(*long, "--minutes", 5)
    cluster.until(lambda: cluster.reached(100), "the first steps")
    node = cluster.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    administer("ip", "link", "set", f"hv-{node}", "down")
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert_finished_exactly(cluster, undisturbed(*long))
    assert "another process is training" in cluster.logs()
    assert cluster.starts() == 1


def test_nothing_is_lost_when_the_controller_of_slurm_is_restarted_in_mid_run(cluster, undisturbed, short):
    job = cluster.submit(*short)
    cluster.until(lambda: cluster.reached(10), "the first steps")
    time.sleep(7)  # slurmctld writes its state up to 5 s after a change; of a job that it forgets it lets nothing live
    pid = int((FOLDER / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    cluster.until(lambda: not Path(f"/proc/{pid}").exists(), "the end of slurmctld")
    time.sleep(3)
    start_cluster()
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert_finished_exactly(cluster, undisturbed(*short))
    assert cluster.starts() == 1


def test_a_run_that_hears_no_signal_stops_itself_in_time_and_ends_with_the_exact_weights(cluster, undisturbed, long):
    (cluster.home / "sitecustomize.py").write_text(DEAF)
    (cluster.home / "minute.toml").write_text(MINUTE + f"setup = ['export PYTHONPATH=\"{cluster.home}\"']\n")
    cluster.hpcvision("submit", *long, "--cluster", "minute.toml")
    cluster.until(lambda: cluster.only_run().is_finished, "the end of the run")
    assert_finished_exactly(cluster, undisturbed(*long))
    assert set(reasons(cluster.only_run())) == {"deadline", "finished"}
