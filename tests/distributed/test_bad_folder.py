"""Run folders that are damaged or take no files: one line before anything is started, and all files as they were."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_processes import (
    FinishedRun,
    assert_readable,
    assert_same_run,
    cut,
    files_below,
    hpcvision,
    refusal,
    ruin_sector,
)

from hpcvision.training import checkpoint

# --- checkpoints ---


def test_with_a_damaged_newest_checkpoint_the_older_is_used_and_the_run_ends_as_if_undisturbed(
    stopped: Path, finished: FinishedRun, jobs: dict[str, Path], workplace: Path
) -> None:
    folder = shutil.copytree(stopped.parent, workplace / "one damaged") / stopped.name
    ruin_sector(folder / "checkpoint.pt")
    older = checkpoint.read(folder / "checkpoint.previous.pt")
    assert older is not None
    result = hpcvision("train", jobs["tiny"], "--processes", 2, runs=folder.parent)
    assert result.returncode == 0, result.stderr
    said = f"checkpoint.pt is damaged; going on from checkpoint.previous.pt at step {older['step']}"
    assert said in result.stderr.splitlines()
    assert_same_run(folder, finished.folder)
    assert_readable(folder)


@pytest.fixture(scope="module")
def ruined(stopped: Path, workplace: Path) -> tuple[Path, dict[str, str]]:
    """A run folder in which no checkpoint can be read, and all the bytes around it."""
    folder = shutil.copytree(stopped.parent, workplace / "both damaged") / stopped.name
    ruin_sector(folder / "checkpoint.pt")
    cut(folder / "checkpoint.previous.pt")
    return folder, files_below(folder.parent)


@pytest.mark.parametrize("words", [["train"], ["train", "--processes", 2], ["submit", "--processes", 2]])
def test_with_two_damaged_checkpoints_nothing_is_started_and_nothing_changed(
    ruined, jobs: dict[str, Path], words: list[object]
) -> None:
    folder, before = ruined
    said = refusal(hpcvision(*words, jobs["tiny"], runs=folder.parent))
    assert f"no readable checkpoint in {folder} (checkpoint.pt, checkpoint.previous.pt)" in said
    assert "--fresh" in said
    assert files_below(folder.parent) == before


def test_fresh_starts_again_after_two_damaged_checkpoints_and_sets_them_aside(
    ruined, finished: FinishedRun, jobs: dict[str, Path], workplace: Path
) -> None:
    runs = shutil.copytree(ruined[0].parent, workplace / "started again")
    result = hpcvision("train", jobs["tiny"], "--processes", 2, "--fresh", runs=runs)
    assert result.returncode == 0, result.stderr
    assert_same_run(runs / ruined[0].name, finished.folder)
    (aside,) = runs.glob("*.replaced-*")
    assert files_below(aside) == files_below(ruined[0])


@pytest.mark.parametrize("damage", [cut, ruin_sector])
def test_a_damaged_configuration_is_named_and_nothing_changed(
    stopped: Path, jobs: dict[str, Path], workplace: Path, damage: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(stopped.parent, workplace / f"configuration {damage.__name__}") / stopped.name
    damage(folder / "config.json")
    before = files_below(folder.parent)
    said = refusal(hpcvision("train", jobs["tiny"], runs=folder.parent))
    assert f"{folder / 'config.json'} is not a configuration of this hpcvision" in said
    assert files_below(folder.parent) == before


# --- folders that take no files ---


LIBC = ctypes.CDLL(None)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def without_override() -> None:
    """Root goes wherever it likes by two capabilities; a process without them is held up as anybody else is."""
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            assert LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


@pytest.mark.parametrize("command", ["status", "cancel"])
def test_a_folder_that_somebody_else_has_closed_does_not_keep_the_others_from_being_shown(
    stopped: Path, workplace: Path, command: str
) -> None:
    runs = shutil.copytree(stopped.parent, workplace / f"beside a closed folder {command}")
    (runs / "closed").mkdir(mode=0o000)
    words = [command, "all"] if command == "cancel" else [command]
    result = hpcvision(*words, runs=runs, handicap=without_override)
    (runs / "closed").rmdir()
    assert (result.returncode, result.stderr) == (0, "")
    assert stopped.name in result.stdout or command == "cancel"


@pytest.fixture
def protected() -> Iterator[Callable[[Path], None]]:
    """Takes from everybody the right to write into a folder and its files, until the test is over."""
    changed: list[tuple[Path, int]] = []

    def protect(folder: Path) -> None:
        for path in (folder, *(path for path in folder.iterdir() if path.is_file())):
            changed.append((path, path.stat().st_mode))
            path.chmod(0o555 if path.is_dir() else 0o444)

    yield protect
    for path, mode in changed:
        path.chmod(mode)


@pytest.mark.parametrize("command", ["train", "submit"])
@pytest.mark.parametrize("case", ["a new run", "an unfinished run", "--fresh"])
def test_a_folder_without_the_right_to_write_is_named_before_anything_is_started(
    protected, stopped: Path, jobs: dict[str, Path], workplace: Path, case: str, command: str
) -> None:
    runs = workplace / f"protected from {command}, {case}"
    if case == "a new run":
        runs.mkdir()
    else:
        shutil.copytree(stopped.parent, runs)
    protected(runs / stopped.name if case == "an unfinished run" else runs)
    before = files_below(runs)
    words = ["--processes", 2, *(["--fresh"] if case == "--fresh" else [])]
    said = refusal(hpcvision(command, jobs["tiny"], *words, runs=runs, handicap=without_override))
    assert said.startswith(f"hpcvision: cannot write into {runs if case == '--fresh' else runs / stopped.name}: ")
    assert "Permission denied" in said
    assert "--runs" in said
    assert files_below(runs) == before


@pytest.mark.parametrize("more", [["seed=1"], [], ["--fresh"]], ids=["a new run", "an unfinished run", "--fresh"])
def test_a_read_only_disk_is_told_in_one_line(
    disk: Path, stopped: Path, jobs: dict[str, Path], more: list[str]
) -> None:
    runs = shutil.copytree(stopped.parent, disk / "runs")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = files_below(runs)
    said = refusal(hpcvision("train", jobs["tiny"], *more, runs=runs))
    assert said.startswith(f"hpcvision: cannot write into {runs}")
    assert "Read-only file system" in said
    assert files_below(runs) == before
