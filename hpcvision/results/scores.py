"""Scores of an archive with their intervals and passports, and what of two passports keeps them from being ranked."""

import math
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from hpcvision.results.record import HIGHER_IS_BETTER

# Facts of a passport that say where and with what a score was computed, not what was computed.
OF_THE_MACHINE = {"device", "processes", "torch", "precision"}
# Values that follow from what is compared, and differ with it.
OF_THE_RESULT = {"description", "seconds_per_image", "reference_classifier_agreement"}


@dataclass(frozen=True)
class Value:
    """One number of a score with its uncertainty."""

    mean: float
    low: float
    high: float
    """Ends of the interval; NaN where nothing is known of it."""
    interval: str
    """What the interval is, in words."""
    higher_is_better: bool

    def beats(self, other: "Value") -> bool | None:
        """True when it is better than the other, None when their intervals meet or there are none."""
        better, worse = (self, other) if (self.mean > other.mean) == self.higher_is_better else (other, self)
        apart = better.low > worse.high if self.higher_is_better else better.high < worse.low
        return (better is self) if apart else None


@dataclass(frozen=True)
class Score:
    """What a run reached on some images, and all that another score must share with it to be compared."""

    name: str
    values: dict[str, Value]
    passport: dict[str, Any]

    @property
    def main(self) -> str:
        """The value that the score is named for."""
        return next(
            (name for name in self.values if name in ("accuracy", "fid") or "frechet" in name), min(self.values)
        )

    def machine(self) -> dict[str, Any]:
        """Where and with what it was computed: of times the only thing that counts."""
        return {name: self.passport.get(name) for name in OF_THE_MACHINE}

    def differences(self, other: "Score") -> dict[str, tuple[Any, Any]]:
        """Facts of the two passports that differ and keep the scores from being ranked."""
        names = sorted((self.passport.keys() | other.passport.keys()) - OF_THE_MACHINE - OF_THE_RESULT)
        pairs = {name: (self.passport.get(name), other.passport.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def scores_of(group: h5py.Group, settings: dict[str, Any], data: dict[str, Any]) -> dict[str, Score]:
    """All scores of a run by name: `test` or `validation`, and those of drawn images."""
    found = {}
    for name, item in group.get("scores", {}).items():
        attributes = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in item.attrs.items()}
        if "extractor" in attributes:
            found[name] = of_drawn_images(name, item, attributes)
        else:
            passport = {
                "split": name,
                "data": data["name"],
                "images_sha256": data.get(f"{name}_sha256"),
                "task": settings["task"]["kind"],
            }
            found[name] = of_a_split(name, attributes, passport | prediction(settings))
    return found


def prediction(settings: dict[str, Any]) -> dict[str, Any]:
    """What the denoising loss of a generator depends on; nothing for a classifier, whose loss has no smoothing."""
    task = settings["task"]
    return (
        {} if task["kind"] == "classify" else {key: task[key] for key in task if key not in ("kind", "label_dropout")}
    )


def of_a_split(name: str, attributes: dict[str, Any], passport: dict[str, Any]) -> Score:
    """Final scores on the images of a split."""
    values: dict[str, Value] = {}
    for key in ("accuracy", "loss"):
        if key in attributes:
            low, high = (float(attributes.get(f"{key}_{end}", math.nan)) for end in ("low", "high"))
            words = "95 % Wilson interval" if f"{key}_low" in attributes else "none known"
            values[key] = Value(float(attributes[key]), low, high, words, HIGHER_IS_BETTER[key])
    return Score(name, values, passport)


def of_drawn_images(name: str, group: h5py.Group, attributes: dict[str, Any]) -> Score:
    """Scores of drawn images; each value is a mean over sets of seeds."""
    values = {}
    for key, dataset in group.items():
        if "mean" in dataset.attrs:
            mean, deviation = float(dataset.attrs["mean"]), float(dataset.attrs["standard_deviation"])
            count = int(np.prod(dataset.shape))
            words = (
                f"mean ± standard deviation of {count} sets of seeds" if count > 1 else "none known: one set of seeds"
            )
            higher = bool(dataset.attrs["higher_is_better"])
            values[key] = Value(mean, mean - deviation, mean + deviation, words, higher)
    return Score(name, values, {key: value for key, value in attributes.items() if key not in OF_THE_RESULT})
