"""An archive, for people: `load` gives a run, `load_sweep` a sweep, `load_model` a model. Imports no torch before."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcvision.config import RunConfig
from hpcvision.config.run import Weights
from hpcvision.errors import UserError
from hpcvision.results.files import array, reading, write_archive
from hpcvision.results.places import Classes, Images, Place, plain
from hpcvision.results.reader import COLUMNS, check_caps, mapping, settings_of, stored_config, table
from hpcvision.results.scores import Score, scores_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


@dataclass(frozen=True)
class Run:
    """One run of an archive; curves, pictures and weights are read when they are asked for."""

    place: Place = field(repr=False)
    name: str
    fingerprint: str
    track: str
    """capped, or auxiliary."""
    finished: bool
    parameters: int
    steps: int
    """Optimisation steps that the run has made, or is to make."""
    test_reads: int
    """How often the test split was read."""
    digest: str
    """SHA-256 over all content."""
    reduced_from: str
    """Of a copy that `hpcvision results reduce` made smaller the digest of the whole archive, else nothing."""
    settings: dict[str, Any] = field(repr=False)
    """The configuration as plain values, nested."""
    caps: dict[str, int] = field(repr=False)
    data: dict[str, Any] = field(repr=False)
    """Name, source, normalisation, and SHA-256 of each split."""
    provenance: dict[str, Any] = field(repr=False)
    """Code, packages, machine, device, queue."""
    scores: dict[str, Score] = field(repr=False)

    @property
    def path(self) -> Path:
        """The file that it is in."""
        return self.place.path

    @cached_property
    def config(self) -> RunConfig:
        """The configuration, typed; UserError when this hpcvision does not know all of it."""
        with self.place.open() as group:
            return stored_config(group, self.path)

    @cached_property
    def train(self) -> "pd.DataFrame":
        """Training curve: step, loss, learning_rate, seconds, images_per_second, perhaps accuracy."""
        return self.table("train")

    @cached_property
    def evaluate(self) -> "pd.DataFrame":
        """Evaluations: step, split, weights, loss, perhaps accuracy."""
        return self.table("evaluate")

    @cached_property
    def ledger(self) -> "pd.DataFrame":
        """One row for each stay on a machine: job_id, restart, world_size, host, from_step, to_step, reason."""
        return self.table("ledger")

    def table(self, name: str) -> "pd.DataFrame":
        """A group of equally long columns."""
        with self.place.open() as group:
            return table(group[name])

    @property
    def samples(self) -> dict[str, Images]:
        """Drawn images by name, such as `random`."""
        return self.images("samples")

    @property
    def interpolations(self) -> dict[str, Images]:
        """Rows of images between two, by name."""
        return self.images("interpolations")

    @property
    def strips(self) -> dict[str, Images]:
        """Rows of one image each on its way from noise, by name."""
        return self.images("strips")

    def images(self, kind: str) -> dict[str, Images]:
        """All pictures of a kind; the pixels are read later."""
        with self.place.open() as group:
            return {
                name: Images(
                    place=Place(self.path, f"{self.place.group.rstrip('/')}/{kind}/{name}"),
                    shape=tuple(item["images"].shape),
                    attributes={key: plain(value) for key, value in item.attrs.items()},
                    labels=array(item["labels"]),
                    seeds=array(item["seeds"]) if "seeds" in item else None,
                )
                for name, item in group.get(kind, {}).items()
            }

    @property
    def classes(self) -> Classes | None:
        """Confusion matrix and accuracy per class of a classifier that has been scored."""
        with self.place.open() as group:
            if "confusion" not in group.get("classes", {}):
                return None
            stored = group["classes"]
            return Classes(array(stored["confusion"]), array(stored["accuracy"]), array(stored["names"]).tolist())

    @property
    def weights(self) -> dict[str, dict[str, NDArray[Any]]]:
        """`raw` and perhaps `ema`: parameter or buffer -> array."""
        with self.place.open() as group:
            return {kind: {name: array(item) for name, item in some.items()} for kind, some in group["weights"].items()}

    @property
    def headline(self) -> str:
        """Which weights the run's scores are of: raw or ema."""
        return str(self.settings["ema"]["headline"])


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep, with the whole run of each."""

    place: Place = field(repr=False)
    name: str
    finished: bool
    objective: str
    """What was to be best on the validation images."""
    larger_is_better: bool
    search: str
    """variants, grid, random, optuna, or merged from other archives."""
    given: str | None
    """Settings and options that `hpcvision sweep` was given, as a shell takes them; None where that is not recorded."""
    winner: str
    """Fingerprint of the best trial, or nothing."""
    caps: dict[str, int] = field(repr=False)
    provenance: dict[str, Any] = field(repr=False)
    fingerprints: list[str] = field(repr=False)
    """Of the runs that are in the file."""

    @property
    def path(self) -> Path:
        """The file."""
        return self.place.path

    @cached_property
    def trials(self) -> "pd.DataFrame":
        """One row per trial: label, fingerprint, status, parameters, steps, objective, and what the sweep turned."""
        with self.place.open() as group:
            found = table(group["trials"])
            for key in map(str, found.columns):
                if h5py.check_string_dtype(group[f"trials/{key}"].dtype) and key not in COLUMNS["trials"]:
                    found[key] = [value_of(words) for words in found[key]]
            return found

    @cached_property
    def rungs(self) -> "pd.DataFrame | None":
        """Comparisons of the scheduler in their order, if there were any."""
        with self.place.open() as group:
            return table(group["rungs"]) if "rungs" in group else None

    @cached_property
    def expected_best(self) -> NDArray[np.float64]:
        """(N,) expected best objective of 1, 2, ... trials; empty where not all have finished."""
        with self.place.open() as group:
            return array(group["expected_best"]) if "expected_best" in group else np.empty(0)

    def run(self, fingerprint: str) -> Run:
        """One of the runs; raises UserError for one that is not there."""
        if fingerprint not in self.fingerprints:
            raise UserError(f"{self.path} holds no run {fingerprint}; it has {', '.join(self.fingerprints[:5])}, ...")
        return read_run(Place(self.path, f"/runs/{fingerprint}"))

    def runs(self) -> Iterator[Run]:
        """All runs, one after the other."""
        return map(self.run, self.fingerprints)


def archive_of(path: str | Path, name: str = "results.h5") -> Path:
    """The archive of a run's or a sweep's folder, or the file itself."""
    path = Path(path)
    return path / name if path.is_dir() else path


def load(path: str | Path) -> Run:
    """The run in a results.h5 or in a run's folder; raises UserError in one line for what cannot be read."""
    return read_run(Place(archive_of(path)), "run")


def load_sweep(path: str | Path) -> Sweep:
    """The sweep in a sweep.h5 or in a sweep's folder; raises UserError in one line for what cannot be read."""
    path = archive_of(path, "sweep.h5")
    with reading(path, "sweep") as file:
        attributes = file.attrs
        return Sweep(
            place=Place(path),
            name=str(attributes["name"]),
            finished=bool(attributes["finished"]),
            objective=str(attributes["objective"]),
            larger_is_better=bool(file["trials/objective"].attrs["higher_is_better"]),
            search=str(attributes.get("search", "")),
            given=str(attributes["given"]) if "given" in attributes else None,
            winner=str(attributes.get("winner", "")),
            caps=mapping(file, "caps_json"),
            provenance=mapping(file, "provenance_json"),
            fingerprints=list(file.get("runs", {})),
        )


def load_model(path: str | Path, weights: Weights | None = None) -> "nn.Module":
    """The model of a run with its trained weights, in evaluation mode, on the CPU.

    weights: raw or ema; None takes those that the run's scores are of. They are put in by name and shape, and nothing
    else of the file is executed. Raises UserError for a file that is over its caps, or whose weights do not fit.
    """
    run = load(path)
    stored = run.weights
    kind = weights or run.headline
    if kind not in stored:
        raise UserError(f"{run.path} has no {kind!r} weights; choose from {', '.join(stored)}")
    return build(run, stored[kind])


def build(run: Run, weights: dict[str, NDArray[Any]]) -> "nn.Module":
    """The model of a run with these weights; UserError when names or shapes do not fit."""
    import torch

    from hpcvision.models import build_model

    model = build_model(run.config.model).eval()
    try:
        model.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in weights.items()})
    except (RuntimeError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"the weights of {run.path} do not fit {run.config.model.kind}: {words[:200]}") from None
    return model


def read_run(place: Place, *kinds: str) -> Run:
    """The run at a place."""
    with reading(place.path, *(kinds or ("run", "sweep")), group=place.group) as group:
        attributes = group.attrs
        check_caps(group, place.path)
        settings, data = settings_of(group, place.path), mapping(group, "data_json")
        return Run(
            place=place,
            name=str(attributes["name"]),
            fingerprint=str(attributes["fingerprint"]),
            track=str(attributes["track"]),
            finished=bool(attributes["finished"]),
            parameters=int(attributes["parameters"]),
            steps=int(attributes["steps"]),
            test_reads=int(attributes["test_reads"]),
            digest=str(attributes["digest"]),
            reduced_from=str(attributes.get("reduced_from", "")),
            settings=settings,
            caps=mapping(group, "caps_json"),
            data=data,
            provenance=mapping(group, "provenance_json"),
            scores=scores_of(group, settings, data),
        )


def copy_run(run: Run, path: Path, *, without: str | None = None) -> None:
    """Write the run alone, as a results.h5 of its own, perhaps without one of its groups."""

    def fill(file: h5py.File) -> None:
        with run.place.open() as source:
            file.attrs.update(source.attrs)
            for item in source:
                source.copy(item, file)
        if without:
            del file[without]

    write_archive(path, fill)


def value_of(words: str) -> Any:
    """What JSON says; lists stay words, which can be compared and counted."""
    value = json.loads(words)
    return words if isinstance(value, list | dict) else value
