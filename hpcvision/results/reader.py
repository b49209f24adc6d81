"""Reads archives: a one-line summary of a run, and its curves as tables."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from pydantic import ValidationError

from hpcvision.config import RunConfig
from hpcvision.config.overrides import one_line
from hpcvision.config.run import Weights
from hpcvision.errors import CapExceeded, UserError
from hpcvision.results.files import array, reading

if TYPE_CHECKING:
    import pandas as pd


Columns = dict[str, np.ndarray[Any, np.dtype[Any]]]

COLUMNS = {
    "train": {"step", "loss"},
    "evaluate": {"step", "split", "weights", "loss"},
    "ledger": {"job_id", "host", "reason", "restart", "world_size", "from_step", "to_step"},
    "trials": {"label", "fingerprint", "status", "reason", "role", "seed", "parameters", "steps", "objective"},
}
"""What a table has at least."""


@dataclass(frozen=True)
class Summary:
    """The facts of one archive that fit into a row of a table."""

    path: Path
    name: str
    fingerprint: str
    track: str
    data: str
    parameters: int
    steps: int
    finished: bool
    test_reads: int
    config: dict[str, Any]
    scored_split: str
    """Which split `scores` are of: test, or validation for a trial of a sweep."""
    scores: dict[str, float]
    """Final scores of a finished run."""


def check_caps(file: h5py.File, path: Path) -> None:
    """Raise CapExceeded when the file of a capped run says that it is over its caps."""
    caps, parameters, steps = json.loads(file.attrs["caps_json"]), file.attrs["parameters"], file.attrs["steps"]
    if file.attrs["track"] == "capped" and (parameters >= caps["parameters"] or steps > caps["steps"]):
        raise CapExceeded(f"{path} has {parameters:,} parameters and {steps:,} steps, over its caps {caps}")


def read_summary(path: Path) -> Summary:
    """The summary of a results.h5."""
    with reading(path, "run", whole=False) as file:
        split = next((name for name in ("test", "validation") if f"scores/{name}" in file), "test")
        stored = file[f"scores/{split}"].attrs if f"scores/{split}" in file else {}
        check_caps(file, path)
        return Summary(
            path=path,
            name=str(file.attrs["name"]),
            fingerprint=str(file.attrs["fingerprint"]),
            track=str(file.attrs["track"]),
            data=str(mapping(file, "data_json")["name"]),
            parameters=int(file.attrs["parameters"]),
            steps=int(file.attrs["steps"]),
            finished=bool(file.attrs["finished"]),
            test_reads=int(file.attrs["test_reads"]),
            config=settings_of(file, path),
            scored_split=split,
            scores={key: float(value) for key, value in stored.items() if key != "description"},
        )


def read_curves(path: Path) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The training curve and the evaluations, one row per point."""
    with reading(path, "run") as file:
        return table(file["train"]), table(file["evaluate"])


def read_points(path: Path) -> tuple[Columns, Columns]:
    """As `read_curves`, as plain arrays by name: pandas takes 0.3 s to import, which every run would pay."""
    with reading(path, "run") as file:
        return columns(file["train"]), columns(file["evaluate"])


def read_images(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """All pictures of a run: `samples/<name>` (N, H, W, 3), and with one more axis `interpolations` and `strips`."""
    with reading(path, "run", "images") as file:
        return {
            f"{kind}/{name}": array(group["images"])
            for kind in ("samples", "interpolations", "strips")
            for name, group in file.get(kind, {}).items()
        }


def read_rules(path: Path) -> dict[str, str]:
    """Name of each set of selected samples -> the rule by which they were selected."""
    with reading(path, "run", "images") as file:
        groups = file.get("samples", {}).items()
        return {name: str(group.attrs["rule"]) for name, group in groups if "rule" in group.attrs}


def table(group: h5py.Group) -> "pd.DataFrame":
    """A group of equally long columns as a DataFrame."""
    import pandas as pd

    return pd.DataFrame(columns(group))


def columns(group: h5py.Group) -> Columns:
    """A group of equally long columns as arrays."""
    names = sorted(group, key=lambda name: name not in ("step", "label"))  # first what a row is about
    found = {name: array(group[name]) for name in names}
    lengths = {len(values) if values.ndim else -1 for values in found.values()}
    lacking = COLUMNS.get(str(group.name).rpartition("/")[2], set()) - found.keys()
    if lacking or len(lengths) > 1 or -1 in lengths:
        raise ValueError(
            f"{group.name} has columns of different length, or lacks {', '.join(sorted(lacking)) or 'none'}"
        )
    return found


def read_model(path: Path) -> tuple[RunConfig, dict[str, dict[str, np.ndarray[Any, np.dtype[Any]]]]]:
    """The configuration of a run and its weights: `raw` and perhaps `ema`, name -> array."""
    with reading(path, "run") as file:
        check_caps(file, path)
        config = stored_config(file, path)
        return config, {
            kind: {name: array(item) for name, item in group.items()} for kind, group in file["weights"].items()
        }


def read_model_facts(path: Path) -> tuple[RunConfig, list[Weights]]:
    """As `read_model`, but of the weights only which there are."""
    with reading(path, "run") as file:
        return stored_config(file, path), list(file["weights"])


def stored_config(file: h5py.File, path: Path) -> RunConfig:
    """The configuration of a run's archive; UserError when this hpcvision does not know all of it."""
    try:
        return RunConfig.model_validate_json(file.attrs["config_json"])
    except ValidationError as error:
        raise UserError(f"{path} was made by another hpcvision: {one_line(error)}; use that version") from None


def mapping(group: h5py.Group, name: str) -> dict[str, Any]:
    """An attribute that is JSON of names and values."""
    found = json.loads(group.attrs[name])
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no list of names and values")
    return found


def settings_of(group: h5py.Group, path: Path) -> dict[str, Any]:
    """The configuration as plain values, with those of settings that are younger than the file.

    As it stands where this hpcvision does not know all of it.
    """
    try:
        return stored_config(group, path).model_dump(mode="json")
    except UserError:
        return mapping(group, "config_json")


def read_scores(path: Path) -> dict[str, dict[str, Any]]:
    """Of every score of generated images: the passport's facts, and each value as `name` and `name_deviation`."""
    with reading(path, "run") as file:
        scores: dict[str, dict[str, Any]] = {}
        for name, group in file.get("scores", {}).items():
            if "extractor" in group.attrs:
                scores[name] = dict(group.attrs)
                for key, dataset in group.items():
                    if "mean" in dataset.attrs:
                        scores[name] |= {key: dataset.attrs["mean"]}
                        scores[name] |= {f"{key}_deviation": dataset.attrs["standard_deviation"]}
        return scores
