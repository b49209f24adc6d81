"""`hpcvision submit --cluster local`: through submitit's local executor, in the background or waited for."""

import os
import signal
import subprocess
from pathlib import Path

import cloudpickle
import pytest
from real_processes import end, events, hpcvision, living, only_run, refusal, start_command, wait_until

from hpcvision.launch.job import TrainJob
from hpcvision.launch.lock import holder
from hpcvision.rundir import RunDir

LOCAL = ["--cluster", "local", "--processes", 2]


def command_of(pid: int) -> bytes:
    """The command line of a process, empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def waited(jobs: dict[str, Path], workplace: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run that was submitted and waited for."""
    runs = workplace / "waited"
    return runs, hpcvision("submit", jobs["plain"], *LOCAL, "--wait", runs=runs)


def test_submit_and_wait_trains_with_all_processes_and_prints_where_the_archive_is(waited) -> None:
    runs, result = waited
    assert result.returncode == 0, result.stderr
    folder = only_run(runs)
    assert "2 process(es)" in result.stdout
    assert str(folder / "results.h5") in result.stdout
    assert (folder / "results.h5").exists()


def test_submit_and_wait_shows_the_log_of_the_run(waited) -> None:
    assert "step 20  validation (raw)" in waited[1].stdout


def test_what_submitit_pickles_is_below_2_kb(waited) -> None:
    folder = only_run(waited[0])
    assert len(cloudpickle.dumps(TrainJob(str(folder), time_limit_seconds=3600.0))) < 2000
    (pickle,) = (folder / "submitted").glob("*_submitted.pkl")
    assert pickle.stat().st_size < 2000


def test_submit_returns_at_once_and_the_run_finishes_by_itself(jobs: dict[str, Path], workplace: Path) -> None:
    runs = workplace / "background"
    result = hpcvision("submit", jobs["plain"], *LOCAL, runs=runs)
    rundir = RunDir(only_run(runs))
    assert result.returncode == 0, result.stderr
    assert not rundir.is_finished
    submitted, log = result.stdout.splitlines()
    job_id = submitted.split(" as job ")[1].split()[0]
    assert int(job_id) in living()
    assert job_id in Path(log.removeprefix("log: ")).name
    assert " running " in hpcvision("status", runs=runs).stdout
    followed = hpcvision("logs", "plain", "-f", runs=runs)
    assert (followed.returncode, followed.stderr) == (0, "")
    assert "step 20" in followed.stdout
    assert rundir.is_finished
    wait_until(rundir.training_graph.exists, "the picture")
    # submitit's tasks still write down what they return.
    wait_until(lambda: int(job_id) not in living(), "submitit's process to end")


def test_cancel_stops_a_run_in_the_background_which_saves_and_goes_on_by_the_same_command(
    jobs: dict[str, Path], workplace: Path
) -> None:
    runs = workplace / "cancelled"
    command = ["submit", jobs["plain"], "train.steps=2000", *LOCAL]
    assert hpcvision(*command, runs=runs).returncode == 0
    folder = only_run(runs)
    wait_until(lambda: events(folder, "train"), "some steps")
    assert hpcvision("cancel", "plain", runs=runs).stdout == f"told to save and end on this machine: {folder.name}\n"
    wait_until(lambda: events(folder, "stop"), "the end of the run")
    (stop,) = events(folder, "stop")
    assert stop["reason"] == "SIGTERM"
    wait_until(lambda: holder(RunDir(folder)) is None, "the end of its process")
    said = hpcvision("cancel", "all", runs=runs).stdout
    assert said.startswith("none of these is in the queue or trained on this machine; ")
    assert hpcvision(*command, runs=runs).returncode == 0
    wait_until(lambda: len(events(folder, "start")) == 2, "the second stay")
    assert events(folder, "start")[1]["from_step"] == stop["step"]
    assert hpcvision("cancel", "all", runs=runs).stdout.startswith("told to save and end on this machine: ")
    wait_until(lambda: holder(RunDir(folder)) is None, "the end of the second stay")
    hpcvision(*command, runs=runs)
    said = hpcvision("cancel", "all", runs=runs).stdout  # its ranks have not come so far yet
    assert said == f"told to save and end on this machine: {folder.name}\n"
    wait_until(lambda: not any("submitit" in str(command_of(pid)) for pid in living()), "the end of all its processes")
    assert not RunDir(folder).failure.exists()


def test_several_runs_at_once_are_refused_on_this_machine_unless_they_are_waited_for(jobs, tmp_path: Path) -> None:
    said = refusal(hpcvision("submit", jobs["plain"], "--seeds", "0-1", *LOCAL, runs=tmp_path))
    assert "2 runs would all train at once on this machine; give --wait" in said
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_fails_while_waited_for_is_one_line_and_exit_code_3(jobs: dict[str, Path], workplace: Path) -> None:
    settings = ["optim.learning_rate=1e12", "cadence.checkpoint_every=5"]
    result = hpcvision("submit", jobs["plain"], *settings, *LOCAL, "--wait", runs=workplace / "failing")
    assert result.returncode == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("hpcvision: rank ")
    assert "not finite at step" in line


def test_ctrl_c_ends_the_watching_of_a_submitted_run_and_not_the_run(jobs: dict[str, Path], workplace: Path) -> None:
    runs = workplace / "watched"
    process = start_command("submit", jobs["plain"], "train.steps=60", *LOCAL, "--wait", runs=runs)
    assert process.stdout is not None
    while "parameters (cap" not in (line := process.stdout.readline()):
        assert line, "the run ended before it was interrupted"
    os.killpg(process.pid, signal.SIGINT)
    watched = end(process)
    assert watched.returncode == 130
    assert "the run goes on in the background" in watched.stdout
    wait_until(lambda: RunDir(only_run(runs)).is_finished, "the end of the run in the background")
