"""Writes sweep.h5: the table of all trials, and the whole archive of each, in one file to hand to a colleague."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from hpcvision.errors import UserError
from hpcvision.results import digests
from hpcvision.results.files import reading, write_archive
from hpcvision.results.record import FORMAT
from hpcvision.results.writer import column

COLUMNS = (
    ("label", "str", "name of the trial"),
    ("fingerprint", "str", "its run"),
    ("status", "str", "finished, stopped (by the scheduler), diverged, failed or unfinished"),
    ("reason", "str", "why it failed, diverged or was stopped"),
    ("role", "str", "trial, or seed for one of the best once more with another seed"),
    ("seed", "i8", "seed of the run"),
    ("parameters", "i8", "parameters of the model"),
    ("steps", "i8", "optimisation steps that were trained"),
)
RUNG_COLUMNS = (
    ("fingerprint", "str", "the run that was compared"),
    ("step", "i8", "after this optimisation step"),
    ("objective", "f8", "its validation score then"),
    ("decision", "str", "continue or stop"),
)


@dataclass
class Trial:
    """One row of a sweep's table."""

    label: str
    fingerprint: str
    status: str
    """finished, stopped (by the scheduler), diverged, failed or unfinished."""
    parameters: int
    steps: int
    """Optimisation steps that were trained."""
    seed: int
    role: str
    """trial, or seed for one of the best once more with another seed."""
    objective: float
    """Validation score of the headline weights at the last step, or at the rung that stopped it; else NaN."""
    reason: str
    """Why it failed, diverged or was stopped."""
    overrides: dict[str, Any]
    archive: Path
    group: str = "/"
    """Where in the archive the run is."""


def write_sweep(
    path: Path,
    *,
    name: str,
    base: dict[str, Any],
    fingerprint: str,
    caps: dict[str, int],
    provenance: dict[str, Any],
    objective: str,
    larger_is_better: bool,
    trials: list[Trial],
    rungs: list[dict[str, Any]],
    expected_best: list[float],
    facts: dict[str, Any],
) -> None:
    """Replace the sweep archive at `path`, whole or not at all; trials without an archive keep their row.

    base and fingerprint are those of the configuration that the trials are changes of. rungs: decisions of the
    scheduler in their order; expected_best: of 1, 2, ... trials; facts: further attributes of the root.
    """

    def fill(file: h5py.File) -> None:
        file.attrs.update(
            format=FORMAT,
            kind="sweep",
            name=name,
            fingerprint=fingerprint,
            finished=all(trial.status in ("finished", "stopped", "diverged") for trial in trials),
            objective=objective,
            **facts,
            config_json=json.dumps(base, sort_keys=True),
            caps_json=json.dumps(caps, sort_keys=True),
            provenance_json=json.dumps(provenance, sort_keys=True),
        )
        table = file.create_group("trials")
        table.attrs["description"] = "one row per trial; the other columns are the keys that the sweep turned"
        for key, kind, text in COLUMNS:
            column(table, key, [getattr(trial, key) for trial in trials], kind, text)
        dataset = column(table, "objective", [trial.objective for trial in trials], "f8", f"validation {objective}")
        dataset.attrs["higher_is_better"] = larger_is_better
        if rungs:
            group = file.create_group("rungs")
            group.attrs["description"] = "comparisons of the scheduler, in the order in which they were made"
            for key, kind, text in RUNG_COLUMNS:
                column(group, key, [rung[key] for rung in rungs], kind, text)
        if expected_best:
            text = f"expected best validation {objective} of 1, 2, ... trials"
            file.create_dataset("expected_best", data=expected_best).attrs["description"] = text
        for key in sorted({key for trial in trials for key in trial.overrides} - {key for key, _, _ in COLUMNS}):
            values = [trial.overrides.get(key) for trial in trials]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                column(table, key, values, "f8", f"value of {key}")
            else:
                column(table, key, [json.dumps(value) for value in values], "str", f"value of {key}, as JSON")
        for trial in trials:
            if trial.archive.exists():
                with reading(trial.archive, "run", "sweep", group=trial.group) as source:
                    group = file.create_group(f"runs/{trial.fingerprint}")
                    group.attrs.update(source.attrs)
                    for item in source:
                        source.copy(item, group)
        digests.seal(file)

    write_archive(path, fill)


def trials_in(path: Path) -> int:
    """Trials that a sweep's archive was made for, without further seeds; 0 when it is not there or cannot be read."""
    try:
        with reading(path, "sweep", whole=False) as file:
            return int(file.attrs.get("wanted", 0))
    except UserError:
        return 0


def sweep_is_finished(path: Path) -> bool:
    """True when the archive is there and all of its trials have ended well."""
    if not path.exists():
        return False
    with reading(path, "sweep") as file:
        return bool(file.attrs["finished"])
