"""The folders of runs and sweeps that a command's words mean."""

import fnmatch
import os
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.rundir import RunDir


def matching(runs: Path, wanted: str | None, *, sweeps: bool = False) -> list[RunDir]:
    """Folders of runs, and of sweeps if so wished, by a part of the name; raises UserError when there is none."""
    names = ("config.json", "sweep.json") if sweeps else ("config.json",)
    there = runs.iterdir() if runs.is_dir() else ()
    # In what somebody else has closed, exists() would raise.
    folders = sorted(path for path in there if any(os.access(path / name, os.R_OK) for name in names))
    if wanted is None:
        return [RunDir(folder.absolute()) for folder in folders]
    name = Path(wanted).name
    if not name:
        raise UserError(f"{wanted!r} names no run; give a part of a run's name, or all")
    chosen = [folder for folder in folders if name in folder.name or fnmatch.fnmatch(folder.name, name)]
    exact = [folder for folder in folders if name == folder.name]
    if not chosen:
        raise UserError(f"no run in {runs.absolute()} has {wanted!r} in its name; see hpcvision status, or give --runs")
    return [RunDir(folder.absolute()) for folder in exact or chosen]


def chosen(runs: Path, wanted: str) -> list[RunDir]:
    """As `matching`, with sweeps, and everything for `all`; raises UserError, too, when there is nothing at all."""
    found = matching(runs, None if wanted == "all" else wanted, sweeps=True)
    if not found:
        raise UserError(nothing_in(runs))
    return found


def the_one(runs: Path, wanted: str) -> RunDir:
    """The only run or sweep that `matching` finds; raises UserError for several, too."""
    found = matching(runs, wanted, sweeps=True)
    if len(found) > 1:
        names = ", ".join(rundir.folder.name for rundir in found[:3])
        raise UserError(f"{wanted!r} is in the names of {len(found)} runs ({names}, ...); give more of the name")
    return found[0]


def nothing_in(runs: Path) -> str:
    """A sentence for whoever looks where no runs are."""
    return f"there are no runs in {runs.absolute()}; give --runs, or set HPCVISION_RUNS"
