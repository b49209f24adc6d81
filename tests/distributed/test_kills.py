"""Runs that are killed or stopped at random moments, again and again, end as if nobody had touched them.

HPCVISION_REPEATS sets the least number of kills of each kind, HPCVISION_SEED their moments.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
from matplotlib.image import imread
from real_processes import (
    COUNTED,
    REPEATS,
    SEED,
    STEPS,
    FinishedRun,
    assert_readable,
    assert_same_run,
    complaint,
    end,
    events,
    hpcvision,
    ledger,
    ranks_below,
    start_command,
    start_ranks,
    wait_until,
)

from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare
from hpcvision.rundir import RunDir


@dataclass(frozen=True)
class Victim:
    """A run that is about to be disturbed."""

    job: Path
    folder: Path
    undisturbed: FinishedRun
    moments: random.Random

    @property
    def command(self) -> list[object]:
        """What the user gives, each time the same."""
        return ["train", self.job, "--processes", 2]

    def start(self) -> subprocess.Popen[str]:
        """The command, waited for until it has come as far as chance wants, or to its end."""
        stays = len(events(self.folder, "start"))
        process = start_command(*self.command, runs=self.folder.parent)
        wait_until(
            lambda: len(events(self.folder, "start")) > stays or process.poll() is not None,
            f"stay {stays + 1} to start",
        )
        points = events(self.folder, "train")
        aim = self.moments.uniform(points[-1]["step"] if points else 0, STEPS)
        wait_until(
            lambda: process.poll() is not None or any(p["step"] >= aim - 5 for p in events(self.folder, "train")),
            f"step {aim:.0f}",
        )
        # Up to the time of ten steps, so that it is anywhere between two points of the curve, or in what comes last.
        time.sleep(self.moments.uniform(0, self.undisturbed.training_seconds * 10 / STEPS))
        return process


# Each way of disturbing gives True when it hit the moment that it was meant for, False when it hit another one, and
# None when the run came to its end before.


def kill_all(victim: Victim) -> bool | None:
    """SIGKILL to the launcher and all ranks at once; one time in five while they are still starting."""
    if victim.moments.random() < 0.2:
        process = start_command(*victim.command, runs=victim.folder.parent)
        time.sleep(victim.moments.uniform(0, victim.undisturbed.startup_seconds))
    else:
        process = victim.start()
    if process.poll() is not None:
        assert end(process).returncode == 0
        return None
    os.killpg(process.pid, signal.SIGKILL)
    end(process)
    return True


def kill_one_rank(victim: Victim) -> bool | None:
    """SIGKILL to one rank; the launcher ends the others and says so."""
    process = victim.start()
    try:
        os.kill(victim.moments.choice(ranks_below(process.pid)), signal.SIGKILL)
    except (OSError, IndexError):  # no rank is left
        assert end(process).returncode == 0
        return None
    result = end(process)
    assert result.returncode == 3, result.stderr
    assert "ended by SIGKILL" in result.stderr
    return True


def stop(victim: Victim) -> bool | None:
    """One of the signals that ask for a stop, to the launcher, to one rank, or to all as a terminal sends Ctrl-C.

    One time in five while the ranks are still starting.
    """
    if victim.moments.random() < 0.2:
        process = start_command(*victim.command, runs=victim.folder.parent)
        wait_until(lambda: process.poll() is not None or len(ranks_below(process.pid)) == 2, "both ranks")
        time.sleep(victim.moments.uniform(0, victim.undisturbed.startup_seconds))
    else:
        process = victim.start()
    number = victim.moments.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
    try:
        if victim.moments.random() < 0.5:
            os.kill(victim.moments.choice(ranks_below(process.pid)), number)
        elif number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    except (OSError, IndexError):  # nobody is left
        pass
    result = end(process)
    assert "Traceback" not in result.stderr
    if RunDir(victim.folder).is_finished:
        # When the ranks have ended, nothing is left to save, and the launcher ends like any other program.
        assert result.returncode in (0, -number), result.stderr
        return None
    assert result.returncode == 0, result.stderr
    assert events(victim.folder, "stop")[-1]["reason"] == number.name
    return True


# Rank 0 is killed by the kernel's own timer, a part of the time after the n-th file was begun that the one before it
# took, or by itself as it is about to rename for the n-th time since.
KILLED_WHILE_WRITING = """
import ctypes, os, signal, sys, time
from contextlib import contextmanager
from pathlib import Path
from hpcvision.launch.job import TrainJob
from hpcvision.results import files
from hpcvision.training import checkpoint

module = {"checkpoint": checkpoint, "results": files}[sys.argv[2]]
number, part, rename = int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
write, replace = module.atomic_write, Path.replace
begun = renames = 0
seconds = 0.0

def kill_after(seconds):
    class Event(ctypes.Structure):
        _fields_ = [
            *(("value", ctypes.c_void_p), ("signal", ctypes.c_int), ("notify", ctypes.c_int), ("_", ctypes.c_int * 12))
        ]
    libc, timer = ctypes.CDLL(None), ctypes.c_void_p()
    event = Event(signal=signal.SIGKILL, notify=0)
    assert libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0
    assert libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 0, 0, 1 + int(1e9 * seconds)), None) == 0

@contextmanager
def atomic_write(path):
    global begun, seconds
    begun += 1
    if begun == number and not rename:
        kill_after(part * seconds)
    since = time.perf_counter()
    with write(path) as file:
        yield file
    seconds = time.perf_counter() - since

def counting_replace(path, target):
    global renames
    if begun == number:
        renames += 1
        if renames == rename:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

module.atomic_write, Path.replace = atomic_write, counting_replace
TrainJob(sys.argv[1])()
"""


def kill_while_writing(victim: Victim, what: str, half_written: tuple[str, ...], renames: int) -> bool | None:
    """SIGKILL to rank 0 in the middle of a write, one time in three between its renames, and to rank 1 after it."""
    prepare(load_job(str(victim.job)), victim.folder.parent)
    number = victim.moments.randint(2, 7)
    rename = victim.moments.randint(1, renames) if victim.moments.random() < 1 / 3 else 0
    how = [what, number, victim.moments.random(), rename]
    first, second = start_ranks(victim.folder, 2, program=KILLED_WHILE_WRITING, arguments=how)
    result = end(first)
    if result.returncode == 0:
        assert end(second).returncode == 0
        return None
    assert result.returncode == -signal.SIGKILL, result.stderr
    os.killpg(second.pid, signal.SIGKILL)
    end(second)
    return any(path for pattern in half_written for path in victim.folder.glob(pattern))


def kill_in_checkpoint(victim: Victim) -> bool | None:
    """SIGKILL while a checkpoint is being written."""
    return kill_while_writing(victim, "checkpoint", (".checkpoint.new.*", "checkpoint.new"), renames=3)


def kill_in_archive(victim: Victim) -> bool | None:
    """SIGKILL while results.h5 is being written."""
    return kill_while_writing(victim, "results", (".results.h5.*",), renames=1)


KINDS: dict[str, tuple[Callable[[Victim], bool | None], str]] = {
    "all": (kill_all, "SIGKILL to the launcher and all ranks at a random moment"),
    "rank": (kill_one_rank, "SIGKILL to one rank at a random moment"),
    "checkpoint": (kill_in_checkpoint, "SIGKILL while a checkpoint was being written"),
    "archive": (kill_in_archive, "SIGKILL while results.h5 was being written"),
    "stop": (stop, "SIGTERM, SIGUSR1, SIGUSR2 or SIGINT at a random moment"),
}


@dataclass(frozen=True)
class Disturbed:
    """Runs that were disturbed in one way, HPCVISION_REPEATS times or until it hit as meant, and came to their end."""

    kind: str
    folders: list[Path]
    hits: int
    """How often the moment was hit that was meant."""


@pytest.fixture(
    scope="module",
    # test_resume.py has the signals once, at moments of its own.
    params=[pytest.param(kind, marks=[pytest.mark.long] if kind == "stop" else []) for kind in KINDS],
)
def disturbed(
    request: pytest.FixtureRequest, jobs: dict[str, Path], workplace: Path, finished: FinishedRun
) -> Disturbed:
    """The tiny job, disturbed again and again; a run that comes to its end makes place for a new one."""
    disturb, words = KINDS[request.param]
    moments = random.Random(f"{SEED} {request.param}")
    folders: list[Path] = []
    outcomes: Counter[bool] = Counter()
    begun = time.monotonic()

    def is_enough() -> bool:
        # A kill aimed at a write of milliseconds misses it now and then, and then of one kill none was as meant.
        return outcomes.total() >= REPEATS and (outcomes[True] > 0 or outcomes.total() >= REPEATS + 9)

    while not is_enough():
        folder = workplace / f"{request.param}-{len(folders)}" / finished.folder.name
        folders.append(folder)
        victim = Victim(jobs["tiny"], folder, finished, moments)
        while not is_enough() and (outcome := disturb(victim)) is not None:
            outcomes[outcome] += 1
            assert_readable(folder)
        if not RunDir(folder).training_graph.exists():
            result = hpcvision(*victim.command, runs=folder.parent)
            assert result.returncode == 0, f"HPCVISION_SEED={SEED}: {result.stderr}"
    COUNTED.append(
        f"{words}: {outcomes.total()} times, {outcomes[True]} of them as meant, in {len(folders)} run(s) "
        f"and {time.monotonic() - begun:.0f} s; HPCVISION_SEED={SEED}"
    )
    return Disturbed(request.param, folders, outcomes[True])


def test_a_disturbed_run_equals_the_undisturbed_run_bit_for_bit(disturbed: Disturbed, finished: FinishedRun) -> None:
    for folder in disturbed.folders:
        assert_same_run(folder, finished.folder)


def test_the_ledger_of_a_disturbed_run_counts_every_step_once(disturbed: Disturbed) -> None:
    for folder in disturbed.folders:
        rows = ledger(folder)
        bounds = [row["from_step"] for row in rows] + [STEPS]
        assert [row["to_step"] for row in rows] == bounds[1:]
        assert bounds[0] == 0
        assert bounds == sorted(bounds)


def test_a_disturbed_run_leaves_no_half_written_file_behind(disturbed: Disturbed) -> None:
    for folder in disturbed.folders:
        assert_readable(folder)
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
        assert not (folder / "FAILED.txt").exists()


def test_kills_hit_the_moments_that_they_are_meant_for(disturbed: Disturbed) -> None:
    assert disturbed.hits > 0


# --- the end of a run, whose every step is a moment of its own ---

KILLED_AT_ITS_END = """
import io, json, os, signal, sys
from pathlib import Path
from matplotlib.figure import Figure
from hpcvision.launch.job import TrainJob
from hpcvision.training.journal import Journal

moment = json.loads(sys.argv[2])
add, savefig = Journal.add, Figure.savefig

def add_and_die(self, event, **fields):
    add(self, event, **fields)
    if moment and moment.items() <= {"event": event, **fields}.items():
        os.kill(os.getpid(), signal.SIGKILL)

def draw_half_and_die(self, target, **options):
    whole = io.BytesIO()
    savefig(self, whole, **options)
    with Path(target).open("wb") if isinstance(target, (str, Path)) else target as file:
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

Journal.add, Figure.savefig = add_and_die, draw_half_and_die
TrainJob(sys.argv[1])()
"""

LAST_MOMENTS: dict[str, dict[str, object] | None] = {
    "after one of two evaluations": {"event": "evaluate", "step": STEPS, "weights": "raw"},
    "before the test split": {"event": "test_read"},
    "before the last archive": {"event": "stop"},
    "in the middle of the picture": None,
}


@pytest.fixture(scope="module")
def killed_at_its_end(jobs: dict[str, Path], workplace: Path) -> Path:
    """The tiny job, killed at all of the last moments, one after the other."""
    rundir = prepare(load_job(str(jobs["tiny"])), workplace / "killed at its end")
    for moment, event in LAST_MOMENTS.items():
        first, second = start_ranks(rundir.folder, 2, program=KILLED_AT_ITS_END, arguments=[json.dumps(event)])
        result = end(first)
        assert result.returncode == -signal.SIGKILL, f"{moment}: {result.stderr}"
        os.killpg(second.pid, signal.SIGKILL)
        end(second)
        assert_readable(rundir.folder)
    result = hpcvision("train", jobs["tiny"], "--processes", 2, runs=rundir.folder.parent)
    assert result.returncode == 0, result.stderr
    return rundir.folder


def test_a_run_killed_at_every_moment_of_its_end_equals_the_undisturbed_run(
    killed_at_its_end: Path, finished: FinishedRun
) -> None:
    assert_same_run(killed_at_its_end, finished.folder)


def test_a_picture_that_a_kill_cut_off_is_drawn_whole_later(killed_at_its_end: Path) -> None:
    assert imread(killed_at_its_end / "training.png").ndim == 3


def test_every_time_that_the_test_split_was_read_is_counted(killed_at_its_end: Path) -> None:
    with h5py.File(killed_at_its_end / "results.h5") as file:
        assert file.attrs["test_reads"] == 3


def almost_finished(finished: FinishedRun, runs: Path) -> Path:
    """A copy of a finished run, to which the archive of its last step and the picture are missing."""
    folder = runs / finished.folder.name
    shutil.copytree(finished.folder, folder)
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(line for line in lines if '"finished"' not in line))
    (folder / "training.png").unlink()
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_when_the_run_is_finished_leaves_a_run_that_has_not_failed(
    jobs: dict[str, Path], workplace: Path, finished: FinishedRun, rank: int
) -> None:
    folder = almost_finished(finished, workplace / f"rank {rank} killed when finished")
    command = ["train", jobs["tiny"], "--processes", 2]
    process = start_command(*command, runs=folder.parent)
    wait_until(lambda: len(ranks_below(process.pid)) == 2, "both ranks")
    victim = ranks_below(process.pid)[rank]
    wait_until(lambda: events(folder, "finished"), "the end")
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    result = end(process)
    if rank == 0:  # which draws the picture; the other one may be gone already
        line = "rank 0: ended by SIGKILL, but the run is finished; the same command shows it"
        assert (result.returncode, complaint(result)) == (3, f"hpcvision: {line}")
    assert not (folder / "FAILED.txt").exists()
    assert hpcvision(*command, runs=folder.parent).returncode == 0
    assert (folder / "training.png").exists()


def test_a_stop_that_comes_after_the_last_step_changes_nothing(
    jobs: dict[str, Path], workplace: Path, finished: FinishedRun
) -> None:
    folder = almost_finished(finished, workplace / "stopped at its end")
    process = start_command("train", jobs["tiny"], "--processes", 2, runs=folder.parent)
    wait_until(lambda: process.poll() is not None or events(folder, "finished"), "the end")
    process.send_signal(signal.SIGTERM)
    result = end(process)
    assert result.returncode == 0, result.stderr
    assert (folder / "training.png").exists()
