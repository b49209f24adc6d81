"""Several archives, also of other clusters, as one sweep.h5 that has every run once."""

import math
import os
from pathlib import Path
from typing import Any

from hpcvision import provenance
from hpcvision.config import flatten
from hpcvision.errors import UserError
from hpcvision.results.digests import UNREADABLE, digests_of
from hpcvision.results.files import reading
from hpcvision.results.places import Place
from hpcvision.results.run import Run, load_sweep, read_run
from hpcvision.results.sweeps import Trial, write_sweep

Refused = list[tuple[Path, str]]


def runs_in(paths: list[Path]) -> tuple[list[Run], Refused]:
    """All runs of results.h5 and sweep.h5 files of which everything can be read, and what cannot, with the reason."""
    found: list[Run] = []
    refused: Refused = []
    for path in paths:
        try:
            with reading(path, "run", "sweep", whole=False) as file:
                is_run = file.attrs["kind"] == "run"
                groups = ["/"] if is_run else [f"/runs/{name}" for name in file.get("runs", {})]
        except UserError as error:
            refused.append((path, str(error)))
            continue
        for place in (Place(path, group) for group in groups):
            try:
                run = read_run(place)
                _ = run.ledger, run.evaluate
                with place.open() as group:
                    unreadable = [name for name, digest in digests_of(group).items() if digest == UNREADABLE]
                if unreadable:
                    raise UserError(f"{path} is damaged ({unreadable[0]} cannot be read); take another copy of it")
                found.append(run)
            except UserError as error:
                refused.append((path, str(error)))
    return found, refused


def newest(runs: list[Run]) -> list[Run]:
    """Every fingerprint once: a finished run rather than another, then more trained, no reduced copy, more scores."""
    best: dict[str, tuple[tuple[bool, int, bool, int], Run]] = {}
    for run in runs:
        rank = (run.finished, trained(run), not run.reduced_from, len(run.scores))
        if run.fingerprint not in best or rank > best[run.fingerprint][0]:
            best[run.fingerprint] = (rank, run)
    return [run for _, run in best.values()]


def trained(run: Run) -> int:
    """Steps that the run has made."""
    return int(run.ledger["to_step"].max()) if len(run.ledger) else 0


def merge(paths: list[Path], output: Path) -> tuple[int, int, Refused]:
    """Write one sweep.h5 of all runs of these archives; (runs in it, doubled ones, files left out with the reason).

    The objective is the validation accuracy of classifiers, the validation loss of generators, after the last step.
    Raises UserError when there is no run, or when there are both kinds.
    """
    if output.exists() and any(output.samefile(path) for path in paths if path.exists()):
        raise UserError(f"--output={output} is one of the files to merge; choose another name")
    if output.exists() and not is_sweep(output):
        raise UserError(f"--output={output} is there and no sweep, so it is not replaced; choose another name")
    runs, refused = runs_in(paths)
    if not runs:
        reason = f" ({refused[0][1]})" if refused else ""
        raise UserError(f"no run could be read{reason}; give results.h5 or sweep.h5 files")
    kept = newest(runs)
    kinds = {run.settings["task"]["kind"] for run in kept}
    if len(kinds) > 1:
        raise UserError("classifiers and generators have no score in common; merge them into two files")
    objective = "accuracy" if kinds == {"classify"} else "loss"
    settings = [flatten(run.settings) for run in kept]
    keys = sorted({key for some in settings for key in some})
    turned = [key for key in keys if len({repr(some.get(key)) for some in settings}) > 1]
    rows = {path: rows_of(path) for path in {run.path for run in kept if run.place.group != "/"}}
    write_sweep(
        output,
        name=output.stem,
        base=kept[0].settings,
        fingerprint=kept[0].fingerprint,
        caps=kept[0].caps,
        provenance=provenance.collect(),
        objective=objective,
        larger_is_better=objective == "accuracy",
        trials=[
            as_trial(run, objective, {key: some.get(key) for key in turned}, rows.get(run.path, {}))
            for run, some in zip(kept, settings, strict=True)
        ],
        rungs=[],
        expected_best=[],
        facts={"search": "merged", "merged_from": [os.fsencode(path).decode(errors="replace") for path in paths]},
    )
    return len(kept), len(runs) - len(kept), refused


def is_sweep(path: Path) -> bool:
    """True for an archive of a sweep, which a merge may replace."""
    try:
        with reading(path, "sweep", whole=False):
            return True
    except UserError:
        return False


def rows_of(sweep: Path) -> dict[str, dict[str, str]]:
    """Label, role, status and reason of the trials of a sweep, by fingerprint; nothing where they cannot be read."""
    try:
        table = load_sweep(sweep).trials
    except UserError:
        return {}
    return {
        str(row["fingerprint"]): {key: str(row[key]) for key in ("label", "role", "status", "reason")}
        for row in table.to_dict("records")
    }


def as_trial(run: Run, objective: str, overrides: dict[str, Any], rows: dict[str, dict[str, str]]) -> Trial:
    """A row of the merged table; rows: of the sweep that the run was a trial of, by fingerprint."""
    points = run.evaluate
    chosen = points[(points["split"] == "validation") & (points["weights"] == run.headline)]
    last = chosen[chosen["step"] == chosen["step"].max()]
    before = rows.get(run.fingerprint, {"label": run.name, "role": "trial", "status": "", "reason": ""})
    has_ended = before["status"] in ("stopped", "diverged")
    return Trial(
        label=before["label"],
        fingerprint=run.fingerprint,
        status="finished" if run.finished else before["status"] if has_ended else "unfinished",
        parameters=run.parameters,
        steps=trained(run),
        seed=int(run.settings["seed"]),
        role=before["role"],
        objective=float(last[objective].iloc[-1]) if len(last) and objective in last else math.nan,
        reason=before["reason"] if has_ended and not run.finished else "",
        overrides=overrides,
        archive=run.path,
        group=run.place.group,
    )
