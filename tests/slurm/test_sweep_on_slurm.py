"""Sweeps on Slurm: Ray over two nodes, arrays of shares, time limits and lost nodes; the trials come out the same."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from real_cluster import JOB, ROOT, exact_content, steps_in

from hpcvision.launch.status import last_step
from hpcvision.rundir import Heartbeat, RunDir, read_journal

pytestmark = pytest.mark.slurm

SEARCH = """
from ray import tune
from hpcvision.sweep import asha

BASE = "plain.py"
FIXED = {{"train.steps": {steps}, "cadence.checkpoint_every": 100}}
SPACE = {{"model.width": tune.uniform(0.1, 3.0), "optim.learning_rate": tune.loguniform(1e-3, 1e-1)}}
OBJECTIVE = "loss"
TRIALS = {trials}
SEEDS = {seeds}
"""
HALVING = SEARCH + "SCHEDULER = asha(first_rung=20, reduction_factor=2)\n"
ASKED = ["--cluster", "testcluster"]


def write_sweep(folder: Path, text: str, **values: int) -> None:
    """search.py in the folder."""
    (folder / "search.py").write_text(text.format(**values))


@pytest.fixture(scope="module")
def long():
    """A sweep of about 30 s on two nodes: more than a stay with a limit of a minute holds, half of which is notice."""
    return {"steps": steps_in(15), "trials": 4, "seeds": 1}


@pytest.fixture(scope="module")
def undisturbed(running_cluster, tmp_path_factory):
    """A function that gives the content of each trial of a sweep that one machine did alone, by fingerprint."""
    del running_cluster
    known = {}

    def content(values):
        key = json.dumps(values)
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            (folder / "plain.py").write_text(JOB)
            write_sweep(folder, SEARCH, **values)
            command = [ROOT / ".venv/bin/hpcvision", "sweep", "search.py", "--runs", "runs"]
            # Not in /tmp, where the tests that run beside this one look for what is left of their own sweeps.
            place = os.environ | {"TMPDIR": "/var/tmp"}
            subprocess.run(command, cwd=folder, check=True, capture_output=True, env=place)
            known[key] = contents(folder)
        return known[key]

    return content


def contents(home: Path) -> dict[str, dict[str, bytes]]:
    """The exact content of all runs of the sweep, by folder."""
    return {path.parent.name: exact_content(path) for path in (home / "runs/search-sweep").glob("*/results.h5")}


def begin(cluster, *words: object) -> str:
    """The id of the last job of `hpcvision sweep search.py WORDS`."""
    said = cluster.hpcvision("sweep", "search.py", *ASKED, *words).stdout
    ids = re.findall(r" as job (\d+) on", said)
    assert ids, said
    return str(ids[-1])


def logs(cluster) -> str:
    """What the sweep's jobs have said."""
    found = sorted((cluster.home / "runs/search-sweep/submitted").glob("*.log"))
    return "\n".join(path.read_text(errors="replace") for path in found)


def columns(cluster) -> dict[str, list]:
    """/trials of sweep.h5, column by column."""
    with h5py.File(cluster.home / "runs/search-sweep/sweep.h5") as file:
        return {
            name: item.asstr()[()].tolist() if h5py.check_string_dtype(item.dtype) else item[()].tolist()
            for name, item in file["trials"].items()
        }


def ledger(cluster) -> dict[str, list[tuple[int, int, str]]]:
    """Of each run of the sweep its stays: first step, last step, host."""
    found = {}
    for path in (cluster.home / "runs/search-sweep").glob("*/results.h5"):
        with h5py.File(path) as file:
            stays = file["ledger"]
            rows = zip(stays["from_step"][()], stays["to_step"][()], stays["host"].asstr()[()], strict=True)
            found[path.parent.name] = [(int(first), int(last), str(host)) for first, last, host in rows]
    return found


def trains(cluster, nodes: int = 2) -> bool:
    """True when so many nodes have brought a trial to its second hundred of steps."""
    runs = [RunDir(path.parent) for path in (cluster.home / "runs/search-sweep").glob("*/log.jsonl")]
    told = [(heartbeat.host, last_step(run)) for run in runs if (heartbeat := Heartbeat.read(run))]
    return len({host for host, step in told if step >= 200}) == nodes


def processes_of_ray() -> list[str]:
    """Commands of the cluster's user that belong to a Ray, on any node, and those that name themselves after it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if path.stat().st_uid and (words.startswith("ray::") or "/ray/" in words or "/tmp/hv" in words):
                found.append(words[:100])
        except OSError:
            continue
    return found


def assert_nothing_of_ray_is_left(cluster) -> None:
    """No process, no token that would let somebody in, no folder of Tune's."""
    cluster.until(lambda: not processes_of_ray(), "the end of Ray", 20)
    folder = cluster.home / "runs/search-sweep"
    meetings = list(folder.glob("ray-*.json"))
    assert meetings
    for meeting in meetings:
        assert json.loads(meeting.read_text()) == {}
        assert meeting.stat().st_mode & 0o777 == 0o600
    assert not list(folder.glob(".tune-*"))


def assert_steps_are_counted_once(cluster, steps: int) -> None:
    """The stays of every run follow each other without a gap, up to the last step."""
    for name, stays in ledger(cluster).items():
        training = [stay for stay in stays if stay[1] > stay[0]]
        assert [first for first, _, _ in training] == [0, *(last for _, last, _ in training[:-1])], name
        assert training[-1][1] == steps


def test_a_sweep_over_two_nodes_equals_the_one_of_one_machine_and_leaves_nothing_of_ray(cluster, undisturbed, long):
    # Of trials of a second or two the first node trains all before the second has joined.
    write_sweep(cluster.home, SEARCH, **long)
    job = begin(cluster, "--nodes", 2)
    assert cluster.wait(job) == "COMPLETED", logs(cluster)
    assert contents(cluster.home) == undisturbed(long)
    hosts = {host for stays in ledger(cluster).values() for _, _, host in stays}
    assert hosts == {"node0", "node1"}
    found = columns(cluster)
    assert found["status"] == 4 * ["finished"]
    assert_nothing_of_ray_is_left(cluster)


@pytest.mark.long  # 12 minutes where Ray takes most of a stay to start
def test_a_sweep_longer_than_its_time_limit_queues_itself_again_and_equals_the_undisturbed(cluster, undisturbed, long):
    write_sweep(cluster.home, SEARCH, **long)
    profile = 'account = "students"\npartition = "test"\ntime_limit_minutes = 1\n'
    (cluster.home / "minute.toml").write_text(profile)
    ASKED[1] = "minute.toml"
    try:
        job = begin(cluster, "--nodes", 2)
    finally:
        ASKED[1] = "testcluster"
    cluster.until(lambda: cluster.state(job) in ("COMPLETED", "FAILED", "TIMEOUT"), "the end of the sweep", 900)
    assert cluster.state(job) == "COMPLETED", logs(cluster)
    assert "goes on from here" in logs(cluster)
    assert contents(cluster.home) == undisturbed(long)
    assert max(map(len, ledger(cluster).values())) >= 2
    assert {host for stays in ledger(cluster).values() for _, _, host in stays} == {"node0", "node1"}
    assert_steps_are_counted_once(cluster, long["steps"])
    assert_nothing_of_ray_is_left(cluster)


@pytest.mark.long
def test_a_sweep_goes_on_after_one_of_its_nodes_was_lost_and_equals_the_undisturbed(cluster, undisturbed, long):
    write_sweep(cluster.home, SEARCH, **long)
    job = begin(cluster, "--nodes", 2)
    cluster.until(lambda: trains(cluster), "some steps")
    subprocess.run(["ip", "link", "set", "hv-node1", "down"], check=True)
    try:
        cluster.until(lambda: cluster.state(job) != "RUNNING", "the end of the stay")
    finally:
        subprocess.run(["ip", "link", "set", "hv-node1", "up"], check=True)
    cluster.until(lambda: cluster.state(job) in ("COMPLETED", "FAILED", "NODE_FAIL"), "the end of the sweep", 400)
    assert cluster.state(job) == "COMPLETED", logs(cluster)
    assert contents(cluster.home) == undisturbed(long)
    assert_steps_are_counted_once(cluster, long["steps"])


@pytest.mark.long
def test_a_preempted_sweep_goes_on_and_equals_the_undisturbed(cluster, undisturbed, long):
    write_sweep(cluster.home, SEARCH, **long)
    job = begin(cluster)
    cluster.until(lambda: trains(cluster, nodes=1), "some steps")
    urgent = ["-A", "students", "-p", "high", "-N2", "--exclusive", "--time=1", "--wrap=sleep 1", "--output=/dev/null"]
    other = cluster.run("sbatch", "--parsable", *urgent).stdout.strip()
    assert cluster.wait(other) == "COMPLETED"
    cluster.until(lambda: cluster.state(job) in ("COMPLETED", "FAILED", "PREEMPTED"), "the end of the sweep", 400)
    assert cluster.state(job) == "COMPLETED", logs(cluster)
    assert contents(cluster.home) == undisturbed(long)
    assert_steps_are_counted_once(cluster, long["steps"])


@pytest.mark.long
def test_ray_loses_a_node_and_its_trial_is_tried_again_on_the_other(cluster, undisturbed, long):
    write_sweep(cluster.home, SEARCH, **long)
    job = begin(cluster, "--nodes", 2)
    cluster.until(lambda: trains(cluster), "some steps")
    (victim,) = [
        path.name
        for path in Path("/proc").glob("[0-9]*")
        if b"raylet/raylet" in command_of(path) and b"SLURMD_NODENAME=node1" in environment_of(path)
    ]
    os.kill(int(victim), 9)
    cluster.until(lambda: cluster.state(job) in ("COMPLETED", "FAILED"), "the end of the sweep", 400)
    assert cluster.state(job) == "COMPLETED", logs(cluster)
    assert "is tried again: its node is lost" in logs(cluster)
    assert "Ray has ended on node1" in logs(cluster)
    assert "state-dump" not in logs(cluster)
    assert contents(cluster.home) == undisturbed(long)


def command_of(process: Path) -> bytes:
    """A process's command line, empty when it is gone."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def environment_of(process: Path) -> bytes:
    """A process's environment, empty when it is gone."""
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def test_an_array_of_shares_and_the_job_after_it_leave_one_whole_sweep(cluster):
    write_sweep(cluster.home, HALVING, steps=60, trials=7, seeds=2)
    job = begin(cluster, "--array", 3)
    assert cluster.wait(job) == "COMPLETED", logs(cluster)
    found = columns(cluster)
    assert len(found["fingerprint"]) == len(set(found["fingerprint"])) == 8  # 7 trials and one more seed
    assert set(found["status"]) == {"finished", "stopped"}
    records = read_journal(cluster.home / "runs/search-sweep/rungs.jsonl")
    assert {record["trial"] for record in records} == set(range(7))
    for number, record in enumerate(records):  # each decision follows from all that were made before, in any share
        before = [-other["objective"] for other in records[:number] if other["step"] == record["step"]]
        stops = bool(before) and -record["objective"] < np.percentile(before, 50)
        assert record["decision"] == ("stop" if stops else "continue"), (number, record)
    stopped = {record["trial"] for record in records if record["decision"] == "stop"}
    assert {n for n, status in enumerate(found["status"]) if status == "stopped"} == stopped
    shares = sorted((cluster.home / "runs/search-sweep/submitted").glob("*_*.log"))
    assert [path.read_text().count("  trial ") for path in shares] == [3, 2, 2]
    with h5py.File(cluster.home / "runs/search-sweep/sweep.h5") as file:
        assert file.attrs["winner"] in found["fingerprint"]
    said = cluster.hpcvision("status", "--runs", "runs/search-sweep").stdout
    assert said.count("poor among the trials of its sweep") == len(stopped)


def test_sweep_sbatch_runs_a_sweep_without_submitit_or_profile(cluster):
    write_sweep(cluster.home, SEARCH, steps=20, trials=2, seeds=2)
    options = ["--parsable", "--account=students", "--partition=gpu", "--cpus-per-task=2", "--output=job.log"]
    job = cluster.run("sbatch", *options, ROOT / "slurm/sweep.sbatch", "search.py").stdout.strip()
    assert cluster.wait(job) == "COMPLETED", (cluster.home / "job.log").read_text()
    assert columns(cluster)["status"] == 3 * ["finished"]


def test_what_is_wrong_with_a_sweep_is_said_before_the_queue(cluster):
    write_sweep(cluster.home, SEARCH, steps=60, trials=3, seeds=1)
    words = ["sweep", "search.py", *ASKED]
    assert "5 tasks for 3 trials; give at most as many tasks" in cluster.refusal(*words, "--array", 5)
    assert "--array=2 jobs have one node each" in cluster.refusal(*words, "--array", 2, "--nodes", 2)
    assert "--nodes=3 is above the 2 of partition gpu" in cluster.refusal(*words, "--nodes", 3)
    assert "the nodes cannot see /tmp/runs" in cluster.refusal(*words, "--runs", "/tmp/runs")
    assert "--nodes has no meaning with --cluster local" in cluster.refusal("sweep", "search.py", "--nodes", 2)
    assert cluster.run("squeue", "-h", "--me").stdout == ""
    large = 'account = "students"\npartition = "gpu"\nmemory = "per_node"\nmemory_gb = 9000000\n'
    (cluster.home / "large.toml").write_text(large)
    said = cluster.refusal("sweep", "search.py", "--cluster", "large.toml")
    assert said.startswith("hpcvision: Slurm refuses the job: Memory specification can not be satisfied")
    shown = cluster.hpcvision(*words, "--nodes", 2, "--dry-run").stdout
    assert "#SBATCH --nodes=2" in shown
    assert " to start at " in shown
    job = begin(cluster, "--minutes", 5)  # what was refused has left nothing that it would have to resume
    assert f"this sweep is in the queue already as job {job}" in cluster.refusal(*words, "--resume")
    assert cluster.hpcvision("cancel", "search").stdout == f"cancelled 1 job(s): {job}\n"
    cluster.until(lambda: cluster.state(job) == "CANCELLED", "the end of the job")
    time.sleep(1)
    again = begin(cluster, "--resume")
    assert again != job
    assert f" {again} " in cluster.hpcvision("status", "search", COLUMNS="200").stdout


def test_an_array_of_a_sweep_is_seen_followed_cancelled_and_resumed_by_the_sweep_s_name(cluster):
    steps = steps_in(8)
    write_sweep(cluster.home, SEARCH, steps=steps, trials=4, seeds=1)
    begin(cluster, "--array", 2)
    first, last = json.loads((cluster.home / "runs/search-sweep/job.json").read_text())["jobs"]

    def status() -> str:
        return cluster.hpcvision("status", "search", COLUMNS="200").stdout

    cluster.until(lambda: re.search(rf"running .* {first} .* of 4 trials have ended", status()), "the trials")
    assert "4 trials of plain" in cluster.hpcvision("logs", "search").stdout
    said = cluster.hpcvision("resume", "search").stdout
    assert said == f"search-sweep is in the queue already as job {first} (RUNNING); see hpcvision status\n"
    said = cluster.hpcvision("cancel", "search").stdout
    assert said == f"cancelled 2 job(s): {first}, {last}\n"
    cluster.until(lambda: not cluster.run("squeue", "-h", "--me").stdout, "the end of the jobs")
    assert re.search("stopped .* it was cancelled; hpcvision resume goes on from where it stopped", status())
    first, last = re.findall(r" as job (\d+) on", cluster.hpcvision("resume", "search", "--minutes", 4).stdout)
    assert cluster.run("squeue", "-h", "-j", last, "-o", "%l").stdout.strip() == "4:00"
    assert cluster.wait(last) == "COMPLETED", logs(cluster)
    assert columns(cluster)["status"] == 4 * ["finished"]
    assert_steps_are_counted_once(cluster, steps)
    assert re.search(f"finished .* {last} ", status())
    assert cluster.hpcvision("resume", "search").stdout == "nothing to resume: search-sweep is finished\n"
