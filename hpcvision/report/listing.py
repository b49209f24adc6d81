"""`hpcvision results list`: a folder of runs as a table, filtered and sorted; only a row of each is kept in memory."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from hpcvision.config import flatten
from hpcvision.errors import UserError
from hpcvision.report.tables import console, score_in_brief, table
from hpcvision.results import load_sweep
from hpcvision.results.files import DAMAGE, reading
from hpcvision.results.reader import Summary, read_summary
from hpcvision.results.where import Condition
from hpcvision.rundir import RunDir

KINDS_OF_FACTS = ("name", "fingerprint", "track", "data", "parameters", "steps", "finished", "test_reads")


@dataclass(frozen=True)
class Listed:
    """One row: what is shown of a run, and by what it is sorted."""

    cells: tuple[str, ...]
    key: Any
    """Value of the fact that rows are sorted by; None where the run has none."""


def print_runs(folder: Path, *, where: str | None = None, sort: str | None = None) -> int:
    """One row for every run and sweep in `folder`, also for one folder in it; gives how many could not be read.

    where: a condition on the facts and settings of runs;  sort: a fact or setting, with - before it the largest first.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder of your runs, or set HPCVISION_RUNS")
    condition = Condition(where) if where else None
    key = sort.lstrip("-") if sort else "path"
    rows, unreadable, known = [], [], set[str]()
    for path in sorted(folder.iterdir()):
        try:
            listed = row_of(path, condition, key, known)
        except (UserError, *DAMAGE) as error:
            unreadable.append(str(error) if isinstance(error, UserError) else f"{path} cannot be read: {error}")
            listed = Listed((escape(path.name), "", "unreadable", "", "", ""), None) if not where else None
        if listed:
            rows.append(listed)
    if condition and known:
        condition.check_names(known)
    if sort and known and key not in known:
        raise UserError(
            f"--sort={sort}: no run has {key!r}; choose from {', '.join(KINDS_OF_FACTS)}, accuracy, loss, ..."
        )
    if sort:
        rows = in_order(rows, largest_first=sort.startswith("-"))
    made = table("run", "data", "state", "parameters", "steps", "score", numbers=("parameters", "steps"))
    for row in rows:
        made.add_row(*row.cells)
    console().print(made)
    for words in unreadable:
        print(f"hpcvision: {words}", file=sys.stderr)
    return len(unreadable)


def in_order(rows: list[Listed], *, largest_first: bool) -> list[Listed]:
    """Sorted by their keys, numbers before words; rows without a value come last."""
    there = [row for row in rows if row.key is not None and row.key == row.key]
    there.sort(key=lambda row: (isinstance(row.key, str), row.key), reverse=largest_first)
    return there + [row for row in rows if row not in there]


def row_of(path: Path, condition: Condition | None, key: str, known: set[str]) -> Listed | None:
    """The row of a folder or archive; None when there is no run in it, or one that does not fulfil the condition."""
    rundir = RunDir(path)
    archive = path if path.suffix == ".h5" and path.is_file() else rundir.results
    if (path / "sweep.h5").exists() or (archive == path and is_sweep(path)):
        return None if condition else of_sweep(path, key)
    if not archive.exists():
        if condition or not rundir.config.exists():
            return None
        return Listed((escape(path.name), "", "failed" if rundir.failure.exists() else "started", "", "", ""), None)
    summary = read_summary(archive)
    facts = facts_of(summary)
    known.update(facts)
    if condition and not condition.holds(facts):
        return None
    state = "failed" if rundir.failure.exists() else "finished" if summary.finished else "unfinished"
    cells = (f"{summary.parameters:,}", f"{summary.steps:,}", score_in_brief(summary))
    return Listed((escape(path.name), escape(summary.data), state, *cells), facts.get(key))


def is_sweep(path: Path) -> bool:
    """True for a sweep.h5."""
    with reading(path, "run", "sweep", whole=False) as file:
        return bool(file.attrs["kind"] == "sweep")


def of_sweep(path: Path, key: str) -> Listed:
    """The row of a sweep's folder."""
    sweep = load_sweep(path)
    trials = sweep.trials
    ended = trials[(trials["role"] == "trial") & (trials["status"] == "finished")]["objective"].tolist()
    best = (max if sweep.larger_is_better else min)(ended, default=math.nan)
    count = int((trials["role"] == "trial").sum())
    state = "finished" if sweep.finished else "unfinished"
    words = f"best validation {sweep.objective} {best:.4f} of {count} trials"
    return Listed((escape(path.name), "", f"sweep, {state}", "", "", words), sweep.name if key == "name" else None)


def facts_of(summary: Summary) -> dict[str, Any]:
    """What a condition may ask of a run: its facts, final scores, and settings by their dotted names."""
    facts = {name: getattr(summary, name) for name in KINDS_OF_FACTS}
    return flatten(summary.config) | facts | summary.scores | {"path": str(summary.path)}
