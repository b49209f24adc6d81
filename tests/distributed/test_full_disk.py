"""A disk without room: refused before a run, and during a run nothing is lost; with room the same command goes on."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from real_processes import (
    STEPS,
    FinishedRun,
    assert_readable,
    assert_same_run,
    complaint,
    end,
    files_below,
    hpcvision,
    only_run,
    ranks_below,
    refusal,
    start_command,
    wait_until,
)

from hpcvision.rundir import RunDir
from hpcvision.training import checkpoint


def fill(disk: Path) -> Path:
    """The file that takes all the room that was left on `disk`."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    assert shutil.disk_usage(disk).free == 0
    return ballast


def limit_files_to(size: int, pid: int = 0) -> None:
    """From now on a process (this one) cannot make a file longer than `size` bytes; those that are longer stay."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


def megabytes(line: str) -> list[float]:
    """The numbers before MB."""
    return [float(number.replace(",", "")) for number in re.findall(r"([\d,.]+) MB", line)]


# --- before a run ---

CASES = pytest.mark.parametrize(
    "more", [["seed=1"], [], ["--fresh"]], ids=["a new run", "an unfinished run", "an unfinished run with --fresh"]
)


@CASES
@pytest.mark.parametrize("command", ["train", "submit"])
def test_a_disk_that_cannot_hold_the_run_is_refused_with_needed_and_free_megabytes(
    disk: Path, stopped: Path, jobs: dict[str, Path], more: list[str], command: str
) -> None:
    runs = shutil.copytree(stopped.parent, disk / "runs")
    fill(disk)
    before = files_below(runs)
    said = refusal(hpcvision(command, jobs["tiny"], *more, "--processes", 2, runs=runs))
    assert str(runs) in said
    needed, free = megabytes(said)
    assert needed > free == 0
    assert files_below(runs) == before


@CASES
def test_a_limit_on_files_that_cannot_hold_the_run_is_refused_with_needed_and_allowed_megabytes(
    stopped: Path, jobs: dict[str, Path], workplace: Path, more: list[str]
) -> None:
    runs = shutil.copytree(stopped.parent, workplace / f"limited {more}")
    before = files_below(runs)
    said = refusal(
        hpcvision("train", jobs["tiny"], *more, "--processes", 2, runs=runs, handicap=lambda: limit_files_to(100_000))
    )
    needed, allowed = megabytes(said)
    assert needed > allowed == 0.1
    assert files_below(runs) == before


# --- during a run ---


def hindered(
    runs: Path, job: Path, hinder: Callable[[Path, int], object], *, processes: int = 2
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run that was held at its first archive while `hinder` got its folder and the process that writes."""
    process = start_command("train", job, "--processes", processes, runs=runs)
    wait_until(lambda: process.poll() is not None or list(runs.glob("*/results.h5")), "the first archive")
    assert process.poll() is None, end(process).stderr
    writer = process.pid if processes == 1 else ranks_below(process.pid)[0]
    os.kill(writer, signal.SIGSTOP)
    folder = only_run(runs)
    hinder(folder, writer)
    os.kill(writer, signal.SIGCONT)
    return folder, end(process)


def assert_stopped_unharmed(folder: Path, result: subprocess.CompletedProcess[str], reason: str) -> int:
    """One line with the reason, the folder and the step of the checkpoint that is there; all files are whole."""
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    said = complaint(result)
    assert f"cannot write: {reason}" in said
    content, _ = checkpoint.load(RunDir(folder))
    assert content is not None
    assert f"the last good checkpoint is of step {content['step']} in {folder}" in said
    assert_readable(folder)
    assert not list(folder.glob(".*")), "half-written files take the room that is missing"
    return int(content["step"])


def assert_goes_on(folder: Path, job: Path, finished: FinishedRun) -> None:
    """The same command finishes the run as if nothing had happened."""
    result = hpcvision("train", job, "--processes", 2, runs=folder.parent)
    assert result.returncode == 0, result.stderr
    assert "damaged" not in result.stderr
    assert_same_run(folder, finished.folder)
    assert_readable(folder)
    assert not (folder / "FAILED.txt").exists()


def test_a_run_whose_disk_becomes_full_stops_with_one_line_and_goes_on_when_there_is_room(
    disk: Path, jobs: dict[str, Path], finished: FinishedRun
) -> None:
    folder, result = hindered(disk / "runs", jobs["tiny"], lambda folder, _: fill(folder.parents[1]))
    assert_stopped_unharmed(folder, result, "No space left on device")
    (disk / "ballast").unlink()
    assert_goes_on(folder, jobs["tiny"], finished)


@pytest.mark.parametrize(
    "size, last_step",
    [
        pytest.param(0, range(STEPS), id="nothing more", marks=pytest.mark.long),
        pytest.param(100_000, range(STEPS), id="no checkpoint", marks=pytest.mark.long),
        pytest.param(250_000, [STEPS], id="no finished archive"),
    ],
)
def test_a_run_that_can_write_no_large_files_any_more_stops_with_one_line_and_goes_on_when_it_can(
    jobs: dict[str, Path], finished: FinishedRun, workplace: Path, size: int, last_step: Sequence[int]
) -> None:
    sizes = {path.name: path.stat().st_size for path in finished.folder.glob("[cr]*.*")}
    assert 100_000 < sizes["checkpoint.pt"] < 250_000 < sizes["results.h5"]
    runs = workplace / f"files of {size} bytes"
    folder, result = hindered(runs, jobs["tiny"], lambda _, writer: limit_files_to(size, writer))
    assert assert_stopped_unharmed(folder, result, "File too large") in last_step
    assert_goes_on(folder, jobs["tiny"], finished)


def test_a_run_of_one_process_that_can_write_no_more_stops_with_one_line(
    jobs: dict[str, Path], workplace: Path
) -> None:
    runs = workplace / "cannot write alone"
    folder, result = hindered(runs, jobs["tiny"], lambda _, writer: limit_files_to(0, writer), processes=1)
    assert_stopped_unharmed(folder, result, "File too large")
