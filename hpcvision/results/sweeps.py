"""Writes sweep.h5: the table of all trials, and the whole archive of each, in one file to hand to a colleague."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from hpcvision.results import digests
from hpcvision.results.files import open_archive, write_archive
from hpcvision.results.reader import check_format
from hpcvision.results.record import FORMAT
from hpcvision.results.writer import column


@dataclass
class Trial:
    """One row of a sweep's table."""

    label: str
    fingerprint: str
    status: str
    """finished, failed or unfinished."""
    parameters: int
    objective: float
    """Validation score of the headline weights at the last step; NaN when the trial did not finish."""
    overrides: dict[str, Any]
    archive: Path


def write_sweep(
    path: Path,
    *,
    name: str,
    base: dict[str, Any],
    fingerprint: str,
    caps: dict[str, int],
    provenance: dict[str, Any],
    objective: str,
    trials: list[Trial],
) -> None:
    """Replace the sweep archive at `path`, whole or not at all; trials without an archive keep their row.

    base and fingerprint are those of the configuration that the trials are changes of.
    """

    def fill(file: h5py.File) -> None:
        file.attrs.update(
            format=FORMAT,
            kind="sweep",
            name=name,
            fingerprint=fingerprint,
            finished=all(trial.status == "finished" for trial in trials),
            objective=objective,
            config_json=json.dumps(base, sort_keys=True),
            caps_json=json.dumps(caps, sort_keys=True),
            provenance_json=json.dumps(provenance, sort_keys=True),
        )
        table = file.create_group("trials")
        table.attrs["description"] = "one row per trial; the other columns are the keys that the sweep turned"
        for key, text in (("label", "name of the trial"), ("fingerprint", "its run"), ("status", "how it ended")):
            column(table, key, [getattr(trial, key) for trial in trials], "str", text)
        column(table, "parameters", [trial.parameters for trial in trials], "i8", "parameters of the model")
        dataset = column(table, "objective", [trial.objective for trial in trials], "f8", f"validation {objective}")
        dataset.attrs["higher_is_better"] = objective != "loss"
        for key in sorted({key for trial in trials for key in trial.overrides}):
            values = [trial.overrides.get(key) for trial in trials]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                column(table, key, values, "f8", f"value of {key}")
            else:
                column(table, key, [json.dumps(value) for value in values], "str", f"value of {key}, as JSON")
        for trial in trials:
            if trial.archive.exists():
                with open_archive(trial.archive) as source:
                    check_format(source, "run", trial.archive)
                    group = file.create_group(f"runs/{trial.fingerprint}")
                    group.attrs.update(source.attrs)
                    for item in source:
                        source.copy(item, group)
        digests.seal(file)

    write_archive(path, fill)
