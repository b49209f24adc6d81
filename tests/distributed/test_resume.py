"""Runs that are asked to stop or out of time go on later, and end as if nobody had touched them."""

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from real_processes import (
    STEPS,
    FinishedRun,
    assert_same_run,
    end,
    events,
    hpcvision,
    ledger,
    ranks_below,
    start_command,
    start_ranks,
    wait_until,
)

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare
from hpcvision.rundir import RunDir
from hpcvision.training import checkpoint


@dataclass(frozen=True)
class Stay:
    """One start of a run that was asked to stop."""

    code: int
    err: str
    step: int
    """Of the checkpoint that it left."""


@dataclass(frozen=True)
class StoppedRun:
    """A run that was asked to stop in three ways, one after the other, and then left alone."""

    folder: Path
    stays: list[Stay]


def ask(
    command: list[object], runs: Path, folder: Path, stay: int, how: Callable[[subprocess.Popen[str]], None]
) -> Stay:
    """Start the run, ask it to stop as soon as it trains, and wait until it has."""
    process = start_command(*command, runs=runs)
    wait_until(lambda: len(events(folder, "start")) == stay or process.poll() is not None, f"stay {stay} to start")
    how(process)
    result = end(process)
    content, _ = checkpoint.load(RunDir(folder))
    assert content is not None, result.stderr
    return Stay(result.returncode, result.stderr, content["step"])


@pytest.fixture(scope="module")
def stopped(jobs: dict[str, Path], workplace: Path, finished: FinishedRun) -> StoppedRun:
    """The tiny job: SIGTERM to one rank, SIGUSR1 to the launcher, Ctrl-C, and then to the end."""
    runs = workplace / "stopped three times"
    folder = runs / finished.folder.name
    command = ["train", jobs["tiny"], "--processes", 2]
    ways: list[Callable[[subprocess.Popen[str]], None]] = [
        lambda process: os.kill(random.choice(ranks_below(process.pid)), signal.SIGTERM),
        lambda process: process.send_signal(signal.SIGUSR1),
        # A terminal sends Ctrl-C to everybody in its foreground group.
        lambda process: os.killpg(process.pid, signal.SIGINT),
    ]
    stays = [ask(command, runs, folder, number, how) for number, how in enumerate(ways, start=1)]
    result = hpcvision(*command, runs=runs)
    assert result.returncode == 0, result.stderr
    return StoppedRun(folder, stays)


def test_a_signal_to_one_rank_stops_all_with_exit_code_0_and_a_checkpoint(stopped: StoppedRun) -> None:
    stay = stopped.stays[0]
    assert stay.code == 0, stay.err
    assert 0 < stay.step < STEPS
    assert f"stopped at step {stay.step} (SIGTERM)" in stay.err


def test_a_signal_to_the_launcher_goes_on_to_the_ranks(stopped: StoppedRun) -> None:
    stay = stopped.stays[1]
    assert stay.code == 0, stay.err
    assert f"stopped at step {stay.step} (SIGUSR1)" in stay.err


def test_ctrl_c_saves_and_stops(stopped: StoppedRun) -> None:
    stay = stopped.stays[2]
    assert stay.code == 0, stay.err
    assert f"stopped at step {stay.step} (SIGINT)" in stay.err
    assert "Traceback" not in stay.err


def test_a_stopped_run_goes_on_and_equals_the_undisturbed_run_bit_for_bit(
    stopped: StoppedRun, finished: FinishedRun
) -> None:
    assert_same_run(stopped.folder, finished.folder)


def test_the_ledger_of_a_stopped_run_adds_up_to_the_step_budget_without_gaps(stopped: StoppedRun) -> None:
    rows = ledger(stopped.folder)
    bounds = [0, *(stay.step for stay in stopped.stays), STEPS]
    assert [row["from_step"] for row in rows] == bounds[:-1]
    assert [row["to_step"] for row in rows] == bounds[1:]
    assert [row["reason"] for row in rows] == ["SIGTERM", "SIGUSR1", "SIGINT", "finished"]


def test_a_stopped_run_still_reads_the_test_split_once(stopped: StoppedRun) -> None:
    assert len(events(stopped.folder, "test_read")) == 1


BLOCKED_RANK = """
import json, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
from hpcvision.launch.job import TrainJob
print(json.dumps(TrainJob(sys.argv[1], time_limit_seconds=float(sys.argv[2]))()))
"""


def test_a_time_limit_stops_all_ranks_at_the_same_step_though_no_signal_can_reach_them(
    jobs: dict[str, Path], workplace: Path
) -> None:
    endless = {"train.steps": 10_000, "cadence.checkpoint_every": 10_000, "cadence.evaluate_every": 10_000}
    rundir = prepare(apply(load_job(str(jobs["plain"])), endless), workplace / "deadline")
    results = [end(process) for process in start_ranks(rundir.folder, 2, program=BLOCKED_RANK, arguments=[12])]
    assert [result.returncode for result in results] == [0, 0], results[0].stderr
    outcomes = [json.loads(result.stdout.splitlines()[-1]) for result in results]
    content, _ = checkpoint.load(rundir)
    assert content is not None
    assert 0 < content["step"] < 10_000
    for outcome in outcomes:
        assert outcome == {"finished": False, "step": content["step"], "reason": "deadline", "scores": {}}
    assert re.search(r"stopped at step [\d,]+ \(deadline\)", results[0].stderr)
