"""What a run's folder and Slurm's word mean together; the words of Slurm here are written down, not a cluster's."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import h5py
import pytest

from hpcvision import cli_cluster
from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.errors import UserError
from hpcvision.launch import queue
from hpcvision.launch.cluster import placed, resume_runs
from hpcvision.launch.folders import matching
from hpcvision.launch.lock import only_one
from hpcvision.launch.profile import Profile
from hpcvision.launch.record import Record, record_own_job
from hpcvision.launch.status import status_of, status_of_sweep, statuses
from hpcvision.launch.watch import log_of
from hpcvision.place import Place
from hpcvision.report.tables import print_statuses
from hpcvision.rundir import Heartbeat, RunDir, open_run, write_json
from hpcvision.sweep import cluster

RECORD = Record("site", ["7"], "/log", "now", {"nodes": 1})


@pytest.fixture
def run(tmp_path):
    return open_run(load_job("addnist_cnn"), tmp_path / "runs")


def beat(run, *, seconds_ago, step=500, job_id="slurm-7.0"):
    Heartbeat(time.time() - seconds_ago, step, "loss 0.5", "node3", job_id).write(run)


def job(state, **more):
    return {"7": queue.Job(state, **more)}


@pytest.mark.parametrize(
    "reason, words",
    [
        ("Priority", "others go first"),
        ("PartitionTimeLimit", "it asks for more time than the partition gives; cancel it and give fewer --minutes"),
        ("SomethingNew", "SomethingNew"),
        ("QOSMaxWallDurationPerJobLimit", "it asks for more run time than the qos allows; cancel it and ask for less"),
        ("AssocMaxWallDurationPerJobLimit", "it asks for more run time than your account allows; cancel it and ask"),
        ("AssocMaxJobsLimit", "your account allows no more jobs at a time"),
        ("QOSMaxJobsPerUserLimit", "the qos allows no more jobs at a time"),
        ("QOSMaxSubmitJobPerUserLimit", "you have as many jobs in the queue as the qos allows"),
        ("QOSMaxGRESPerUser", "the qos allows no more GPUs at a time"),
        ("QOSMaxGRESPerJob", "it asks for more GPUs than the qos allows; cancel it and ask for less"),
        ("AssocGrpGRESMinutes", "the computing time that your account allows is used up"),
        ("AssocGrpGRESRunMinutes", "your account allows no more computing time at a time"),
        ("QOSMinGRES", "it asks for too little, the qos wants more GPUs; cancel it"),
        ("QOSMinCpuNotSatisfied", "it asks for too little, the qos wants more cores; cancel it"),
        ("AssocGrpMemLimit", "your account allows no more memory at a time"),
        ("JobArrayTaskLimit", "as many tasks of its array run as may at once"),
        ("Licenses", "it waits for a licence"),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-9]", "the nodes it needs are down or reserved"),
        ("", "in the queue"),
    ],
)
def test_why_a_job_waits_is_told_in_words_with_the_expected_start(run, reason, words):
    found = status_of(run, RECORD, job("PENDING", reason=reason, start="2026-11-23T07:00:00"))
    assert found.state == "waiting"
    assert found.words.startswith(words)
    assert found.words.endswith("; expected to start 2026-11-23 07:00:00")


def test_a_running_job_without_a_heartbeat_is_starting(run):
    assert status_of(run, RECORD, job("RUNNING", nodes="node3")).words == "starting on node3"


def test_a_heartbeat_from_before_this_start_does_not_count(run):
    beat(run, seconds_ago=3600)
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 60))
    assert status_of(run, RECORD, job("RUNNING", nodes="node3", start=start)).words == "starting on node3"


def test_a_running_job_shows_its_newest_numbers(run):
    beat(run, seconds_ago=5)
    found = status_of(run, RECORD, job("RUNNING", nodes="node3"))
    assert (found.state, found.words, found.step) == ("running", "on node3: loss 0.5", 500)


def test_a_job_that_slurm_calls_running_without_a_heartbeat_is_silent(run):
    beat(run, seconds_ago=12 * 60 + 10)
    found = status_of(run, RECORD, job("RUNNING", nodes="node3"))
    assert found.state == "silent"
    assert found.words.startswith("Slurm says RUNNING, no heartbeat for 12 minutes")


@pytest.mark.parametrize(
    "state, words",
    [
        ("OUT_OF_MEMORY", "it needed more memory than it asked for; raise memory_gb in the profile"),
        ("TIMEOUT", "the time limit ended it before it could stop by itself"),
        ("NODE_FAIL", "its node failed"),
        ("PREEMPTED", "a more urgent job took its place"),
        ("CANCELLED", "it was cancelled"),
    ],
)
def test_why_a_job_ended_is_told_in_words_with_what_goes_on(run, state, words):
    beat(run, seconds_ago=600)
    found = status_of(run, RECORD, job(state))
    assert (found.state, found.words) == ("stopped", f"{words}; hpcvision resume goes on from its last checkpoint")


def test_a_run_of_this_machine_is_not_sent_to_the_queue(run):
    beat(run, seconds_ago=600, job_id="local-1")
    run.checkpoint.touch()
    for record in (None, Record("", ["7"], "", "now", {})):  # of nobody, and of plain sbatch
        assert status_of(run, record, {}).words == "the same command goes on from its last checkpoint"
    with pytest.raises(UserError, match="was on no cluster: the same command goes on"):
        resume_runs([run], run.folder.parent, cluster=None, minutes=None)
    with pytest.raises(UserError, match="--cluster=local is this machine"):
        resume_runs([run], run.folder.parent, cluster="local", minutes=None)


def test_what_slurm_knows_of_the_end_outranks_what_a_neighbour_wrote(run):
    run.failure.write_text("rank 0: Traceback (most recent call last):\nRuntimeError: Connection closed by peer\n")
    assert status_of(run, RECORD, job("OUT_OF_MEMORY")).words.startswith("it needed more memory than it asked for")
    assert status_of(run, RECORD, job("NODE_FAIL")).words.startswith("its node failed")


def test_a_failure_is_told_by_the_last_line_of_its_traceback_and_its_rank(run):
    run.failure.write_text(
        "rank 1: Traceback (most recent call last):\n  File ...\nZeroDivisionError: division by zero\n"
    )
    found = status_of(run, RECORD, job("FAILED"))
    assert found.state == "failed"
    assert found.words == "rank 1: ZeroDivisionError: division by zero (FAILED.txt has the traceback)"


def test_a_rank_that_a_signal_ended_is_named_and_not_the_one_that_lost_it(run, tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "submitit INFO - Starting with JobEnvironment(...)\nsrun: error: node0: task 0: Killed\n"
        "submitit INFO - Starting with JobEnvironment(...)\nsrun: error: node1: task 3: Killed\n"
        "srun: error: node0: task 0: Exited with exit code 1\nsrun: error: node0: task 1: Terminated\n"
    )
    run.failure.write_text("rank 0: Traceback (most recent call last):\nRuntimeError: Connection reset by peer\n")
    found = status_of(run, Record("site", ["7"], str(log), "now", {"nodes": 1}), job("FAILED"))
    assert found.words.startswith(
        "rank 3 on node1 was ended by the system or by hand (Killed); hpcvision resume goes on"
    )


def test_an_earlier_stay_of_a_script_s_log_is_not_blamed(run, tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "hpcvision: job 7, start 0\nsrun: error: node0: task 0: Terminated\nhpcvision: job 7, start 1\nstep 10\n"
    )
    run.failure.write_text("rank 0: the loss is not finite\n")
    record = Record("", ["7"], str(log), "now", {})
    assert status_of(run, record, job("FAILED")).words == "rank 0: the loss is not finite"
    log.write_text(log.read_text() + "srun: error: node0: task 1: Killed\n")
    assert status_of(run, record, job("FAILED")).words.startswith("rank 1 on node0 was ended by the system")


def test_a_run_whose_job_nobody_could_write_down_runs_as_long_as_its_heart_beats(run):
    beat(run, seconds_ago=5)
    assert status_of(run, None, {}).state == "running"
    beat(run, seconds_ago=600)
    assert status_of(run, None, {}).state == "stopped"


def test_words_with_brackets_are_shown_as_they_are(run, capsys):
    run.failure.write_text("rank 0: RuntimeError: [/__w/gloo/pair.cc:545] Read error [10.77.0.12]:38628\n")
    print_statuses([status_of(run, RECORD, job("FAILED"))])
    assert "[/__w/gloo/pair.cc:545] Read error [10.77.0.12]:38628" in " ".join(capsys.readouterr().out.split())


def test_a_run_of_this_machine_is_running_as_long_as_its_heart_beats(run):
    beat(run, seconds_ago=5, job_id="local-1")
    assert status_of(run, None, {}).state == "running"
    beat(run, seconds_ago=600, job_id="local-1")
    assert status_of(run, None, {}).state == "stopped"


def test_a_run_whose_process_on_this_machine_has_ended_is_stopped_at_once(run):
    beat(run, seconds_ago=1, job_id="123")
    with only_one(run):
        assert status_of(run, None, {}).state == "running"
    take = f"import sys; from hpcvision.launch.lock import *\nwith only_one(RunDir(Path({str(run.folder)!r}))): pass"
    subprocess.run([sys.executable, "-c", take], check=True)
    assert status_of(run, None, {}).state == "stopped"
    number, _, namespace = (run.folder / "lock").read_text().split()
    for machine in (f"another-host {namespace}", f"{socket.gethostname()} pid:[1]"):  # of which nobody here knows
        (run.folder / "lock").write_text(f"{number} {machine}\n")
        assert status_of(run, None, {}).state == "running"


def test_a_run_that_has_its_folder_and_no_step_yet_is_starting(run):
    with only_one(run):
        assert status_of(run, None, {}).words == "starting on this machine"


def test_a_run_whose_job_slurm_has_forgotten_is_stopped_and_not_running(run):
    beat(run, seconds_ago=5)
    assert status_of(run, RECORD, {}).state == "stopped"


def test_a_job_that_slurm_has_forgotten_before_a_step_is_failed_with_its_id(run):
    found = status_of(run, RECORD, {})
    assert (found.state, found.words) == ("failed", "Slurm no longer knows its job 7; see hpcvision logs")


def test_a_running_job_that_never_showed_a_heartbeat_is_silent_in_the_end(run):
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 600))
    found = status_of(run, RECORD, job("RUNNING", nodes="node3", start=start))
    assert (found.state, found.words[:51]) == ("silent", "Slurm says RUNNING for 10 minutes, no heartbeat yet")


def in_job(**more):
    """The environment of a task of Slurm job 7."""
    ids = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID")
    return {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"} | dict.fromkeys(ids, "0") | more


def record_in(run, environment):
    record_own_job(run, Place.from_environment(environment), environment)
    return Record.of(run)


def test_a_run_that_sbatch_started_writes_down_its_own_job_and_log(run, tmp_path):
    (tmp_path / "hpcvision-7.log").touch()
    record = record_in(run, in_job(HPCVISION_LOG=str(tmp_path / "hpcvision-7.log")))
    assert record.jobs == ["7"]
    assert log_of(run) == tmp_path / "hpcvision-7.log"
    assert status_of(run, record, job("RUNNING", nodes="node3")).state == "running"


def test_a_task_of_an_array_that_sbatch_started_is_known_by_the_name_that_squeue_shows(run):
    assert record_in(run, in_job(SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3")).jobs == ["5_3"]


def test_a_newer_job_of_sbatch_joins_those_that_submit_has_written_down(run):
    write_json(run.job, asdict(Record("site", ["3"], "/old/3_0_log.out", "now", {"nodes": 2})))
    record = record_in(run, in_job(HPCVISION_LOG="pipe:[123]"))
    assert (record.cluster, record.jobs, record.place, record.log) == ("site", ["3", "7"], {"nodes": 2}, "")
    jobs = {"3": queue.Job("TIMEOUT"), "7": queue.Job("RUNNING", nodes="node3")}
    assert status_of(run, record, jobs).job == "7"
    run.submissions.mkdir()
    (run.submissions / "3_0_log.out").touch()
    with pytest.raises(UserError, match="the log of its job 7 is where sbatch was told to write it"):
        log_of(run)


@pytest.mark.parametrize(
    "environment", [{}, in_job(SUBMITIT_EXECUTOR="slurm"), {"HPCVISION_RANK": "0", "HPCVISION_WORLD_SIZE": "1"}]
)
def test_a_run_that_is_no_slurm_task_or_one_of_submit_s_writes_down_no_job(run, environment):
    assert record_in(run, environment | {"HPCVISION_JOB_ID": "local-1"}) is None


def test_a_finished_run_still_shows_its_job(run):
    run.log.write_text('{"event": "finished"}\n')
    assert status_of(run, RECORD, {}).job == "7"


def test_a_run_of_another_version_is_unreadable_and_no_error(run):
    run.config.write_text('{"name": "old"}')
    found = status_of(run, RECORD, job("RUNNING"))
    assert found.state == "unreadable"
    assert "is not a configuration of this hpcvision" in found.words


def test_a_finished_run_is_finished_whatever_slurm_says(run):
    run.log.write_text(json.dumps({"event": "finished", "step": 10}) + "\n")
    assert status_of(run, RECORD, job("FAILED")).state == "finished"


def test_of_a_chain_the_link_that_runs_is_told(run):
    record = Record("site", ["7", "8", "9"], "/log", "now", {})
    beat(run, seconds_ago=5)
    jobs = {"7": queue.Job("TIMEOUT"), "8": queue.Job("RUNNING", nodes="node4"), "9": queue.Job("PENDING")}
    found = status_of(run, record, jobs)
    assert (found.job, found.state) == ("8", "running")


def test_the_log_of_a_chain_is_that_of_its_newest_link_that_has_written(run, tmp_path):
    folder = tmp_path / "runs 12"
    folder.mkdir()
    write_json(run.job, asdict(Record("site", ["12", "13"], str(folder / "13_0_log.out"), "now", {})))
    assert log_of(run) == folder / "12_0_log.out"
    (folder / "12_0_log.out").touch()
    assert log_of(run) == folder / "12_0_log.out"
    (folder / "13_0_log.out").touch()
    assert log_of(run) == folder / "13_0_log.out"


def test_runs_are_found_by_a_part_of_their_name_a_pattern_or_the_whole(tmp_path):
    for seed in (0, 1):
        open_run(load_job("addnist_cnn").model_copy(update={"seed": seed}), tmp_path)
    first, second = matching(tmp_path, None)
    assert matching(tmp_path, "addnist") == [first, second]
    assert matching(tmp_path, first.folder.name[-6:]) == [first]
    assert matching(tmp_path, "addnist*" + second.folder.name[-4:]) == [second]
    assert matching(tmp_path, str(first.folder)) == [first]
    with pytest.raises(UserError, match=r"'' names no run; give a part of a run's name, or all"):
        matching(tmp_path, "")
    with pytest.raises(UserError, match=r"no run in .* has 'mobilenet' in its name"):
        matching(tmp_path, "mobilenet")


def test_what_slurm_has_set_for_the_job_that_we_are_in_is_left_out():
    names = ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SBATCH_ACCOUNT", "SRUN_DEBUG", "SUBMITIT_EXECUTOR")
    inside = dict.fromkeys(names, "7") | {"SLURM_CONF": "/x", "PATH": "p"}
    assert queue.outside(inside) == {"SLURM_CONF": "/x", "PATH": "p"}


def test_what_a_site_has_set_on_its_login_node_is_kept():
    login = {"SBATCH_ACCOUNT": "project", "SLURM_CLUSTERS": "big", "PATH": "p"}
    assert queue.outside(login) == login


@pytest.mark.parametrize(
    "words, minutes",
    [("1-02:03:04", 1563 + 4 / 60), ("02:03:04", 123 + 4 / 60), ("03:30", 3.5), ("UNLIMITED", float("inf"))],
)
def test_slurm_s_times_are_read(words, minutes):
    assert queue.minutes(words) == pytest.approx(minutes)


def test_a_machine_without_slurm_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no squeue on this machine: no Slurm; go to the cluster's login node"):
        queue.in_queue(["1"])


def test_a_heartbeat_that_cannot_be_read_is_none(tmp_path):
    rundir = RunDir(tmp_path)
    assert Heartbeat.read(rundir) is None
    rundir.heartbeat.write_text("{")
    assert Heartbeat.read(rundir) is None


def test_a_run_that_shares_its_job_waits_for_its_turn_and_is_not_silent(run):
    shared = replace(RECORD, runs_per_job=3)
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 3600))
    found = status_of(run, shared, job("RUNNING", nodes="node3", start=start))
    assert (found.state, found.words) == (
        "waiting",
        "its job runs on node3 and trains several runs, one after the other",
    )
    assert status_of(run, RECORD, job("RUNNING", nodes="node3", start=start)).state == "silent"


def test_a_run_that_failed_is_told_while_its_job_trains_others(run):
    run.failure.write_text("the loss is not finite")
    found = status_of(run, replace(RECORD, runs_per_job=3), job("RUNNING", nodes="node3"))
    assert (found.state, found.words) == ("failed", "the loss is not finite")


def test_where_there_is_no_slurm_the_runs_that_need_none_are_shown_all_the_same(tmp_path, monkeypatch):
    runs, base = tmp_path / "runs", load_job("addnist_cnn")
    submitted, local = (open_run(apply(base, {"seed": seed}), runs) for seed in (0, 1))
    write_json(submitted.job, asdict(RECORD))
    monkeypatch.setenv("PATH", "")
    found = {status.rundir: status for status in statuses(runs, None)}
    assert found[local].state == "new"
    assert found[submitted].state == "unknown"
    assert "there is no squeue on this machine" in found[submitted].words


# --- sweeps ---


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three trials: one is finished, its scheduler stopped another, and the third trains."""
    folder = tmp_path / "runs/search-sweep"
    trials = [open_run(apply(load_job("addnist_cnn"), {"seed": seed}), folder) for seed in range(3)]
    write_json(folder / "sweep.json", {})
    trials[0].log.write_text('{"event": "finished"}\n')
    poor = {"event": "rung", "decision": "stop", "folder": trials[1].folder.name}
    (folder / "rungs.jsonl").write_text(json.dumps(poor) + "\n")
    beat(trials[0], seconds_ago=600)
    beat(trials[2], seconds_ago=5)
    return RunDir(folder)


def test_a_sweep_in_the_queue_is_told_with_how_many_of_its_trials_have_ended(sweep):
    found = status_of_sweep(sweep, RECORD, job("RUNNING", nodes="node[3-4]"))
    assert (found.state, found.words, found.job) == ("running", "on node[3-4]: 2 of 3 trials have ended", "7")
    assert status_of_sweep(sweep, RECORD, job("PENDING", reason="Priority")).words == "others go first"


def test_a_sweep_that_a_cluster_has_stopped_goes_on_by_resume(sweep):
    found = status_of_sweep(sweep, RECORD, job("CANCELLED"))
    words = "2 of 3 trials have ended; it was cancelled; hpcvision resume goes on from where it stopped"
    assert (found.state, found.words) == ("stopped", words)


def test_a_sweep_of_this_machine_runs_by_its_trials_heartbeats_and_goes_on_by_its_own_command(sweep):
    for trial in sweep.folder.glob("*/heartbeat.json"):
        Heartbeat(time.time() - 5, 500, "loss 0.5", "laptop", "local").write(RunDir(trial.parent))
    found = status_of_sweep(sweep, None, {})
    assert (found.state, found.words) == ("running", "on laptop: 2 of 3 trials have ended")
    for trial in sweep.folder.glob("*/heartbeat.json"):
        Heartbeat(time.time() - 600, 500, "loss 0.5", "laptop", "local").write(RunDir(trial.parent))
    found = status_of_sweep(sweep, None, {})
    words = "2 of 3 trials have ended; the same command with --resume goes on from where it stopped"
    assert (found.state, found.words) == ("stopped", words)


def test_a_finished_sweep_that_waits_with_more_trials_is_waiting(sweep):
    with h5py.File(sweep.folder / "sweep.h5", "w") as file:
        file.attrs.update(kind="sweep", finished=True)
    assert status_of_sweep(sweep, RECORD, job("COMPLETED")).state == "stopped"  # a trial has been added since
    for path in sweep.folder.glob("*/config.json"):
        (path.parent / "log.jsonl").write_text('{"event": "finished"}\n')
    assert status_of_sweep(sweep, RECORD, job("COMPLETED")).state == "finished"
    assert status_of_sweep(sweep, RECORD, job("PENDING")).state == "waiting"


def test_a_sweep_whose_archive_cannot_be_read_is_told_by_its_trials(sweep):
    (sweep.folder / "sweep.h5").write_bytes(b"half a file")
    assert status_of_sweep(sweep, None, {}).state == "running"


def test_sweeps_are_found_where_they_are_asked_for_and_shown_without_steps(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    open_run(load_job("addnist_cnn"), tmp_path / "runs")
    assert [found.folder.name for found in matching(tmp_path / "runs", None)] == ["addnist_cnn-e8c82c433644"]
    assert matching(tmp_path / "runs", "search-sweep", sweeps=True) == [sweep]
    print_statuses(statuses(tmp_path / "runs", None))
    shown = capsys.readouterr().out
    assert "on node3: 2 of 3 trials have ended" in shown
    assert shown.count("/10,000") == 1  # of the run


def test_the_log_of_a_sweep_is_that_of_its_newest_job_or_of_its_first_share(sweep):
    record = Record("site", ["12", "13"], str(sweep.submissions / "13.log"), "now", {})
    write_json(sweep.job, asdict(record))
    assert log_of(sweep) == sweep.submissions / "13.log"
    sweep.submissions.mkdir()
    (sweep.submissions / "12_0.log").touch()
    assert log_of(sweep) == sweep.submissions / "12_0.log"
    (sweep.submissions / "13.log").touch()
    assert log_of(sweep) == sweep.submissions / "13.log"


def test_the_log_of_a_sweep_of_this_machine_was_the_terminal(sweep):
    with pytest.raises(UserError, match="search-sweep was not submitted by hpcvision sweep --cluster: its log was the"):
        log_of(sweep)


def test_a_sweep_of_this_machine_is_not_resumed_on_a_cluster(sweep):
    with pytest.raises(UserError, match="search-sweep was not submitted: the command that began it goes on with --res"):
        cli_cluster.resume("search", runs=sweep.folder.parent)


@pytest.mark.parametrize(
    "tasks, state",
    [
        (["COMPLETED", "PENDING", "RUNNING"], "RUNNING"),
        (["RUNNING", "COMPLETED", "PENDING"], "RUNNING"),
        (["COMPLETED", "PENDING", "FAILED"], "PENDING"),
        (["COMPLETED", "FAILED", "COMPLETED"], "FAILED"),
    ],
)
def test_an_array_lives_as_long_as_one_of_its_tasks_does(tasks, state, fake_commands):
    lines = "".join(f"12_{n}|{20 + n}|12|{word}|None||N/A\n" for n, word in enumerate(tasks))
    fake_commands(squeue=f"cat <<'E'\n{lines}E")
    assert queue.in_queue(["12"])["12"].state == state
    assert queue.in_queue(["12_0"])["12_0"].state == tasks[0]


def test_of_an_array_that_has_ended_a_task_that_failed_is_told(fake_commands):
    lines = "".join(f"12_{n}|{20 + n}|{word}|None||\n" for n, word in enumerate(["COMPLETED", "FAILED", "COMPLETED"]))
    fake_commands(sacct=f"cat <<'E'\n{lines}E")
    assert queue.ended(["12"])["12"].state == "FAILED"


@pytest.mark.parametrize("error", ["Socket timed out on send/recv operation", "Invalid qos specification"])
def test_a_sweep_that_slurm_may_have_taken_keeps_its_folder_and_one_that_it_refused_does_not(
    error, fake_commands, tmp_path, monkeypatch
):
    monkeypatch.setattr(cluster, "check_here", lambda *_: None)  # asks Slurm
    fake_commands(sbatch=f"echo 'sbatch: error: Batch job submission failed: {error}' >&2; exit 1")
    profile = Profile(executor="slurm", partition="gpu")
    with pytest.raises(UserError, match=error) as told:
        cluster.submit_sweep(
            "demo", ["demo"], {}, tmp_path, again=[], cluster="site", profile=profile, place=placed(profile)
        )
    may_be_taken = "timed out" in error
    assert isinstance(told.value, queue.MayBeTaken) == ("see squeue --me" in str(told.value)) == may_be_taken
    assert (tmp_path / "demo-sweep/sweep.json").exists() == may_be_taken


@pytest.mark.parametrize("words", [["cancel", "all"], ["resume", "all"], ["status"]])
def test_a_folder_without_runs_is_named_by_whatever_looks_there(words, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "hpcvision", *words, "--runs", tmp_path], capture_output=True, text=True
    )
    assert f"there are no runs in {tmp_path}; give --runs, or set HPCVISION_RUNS" in result.stdout + result.stderr
    assert result.returncode == (0 if words == ["status"] else 2)
