"""What an archive holds, as plain arrays, before it is written and after it is read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
HIGHER_IS_BETTER = {"loss": False, "accuracy": True}


@dataclass
class Samples:
    """Drawn images (or real ones, with the attribute `real`), (N, H, W, 3) uint8, with labels (N,) and seeds (N,).

    One seed makes one image.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    seeds: NDArray[np.int64]
    attributes: dict[str, Any]
    """sampler, steps, guidance_scale, weights; of selected samples the `rule`."""
    merit: NDArray[np.float64] | None = None
    """Of selected samples: by what they were selected."""


@dataclass
class Rows:
    """Images on the way from one to another: (rows, points, H, W, 3) uint8, labels (rows, 2) of the two ends."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    attributes: dict[str, Any]
    """The sampler's settings; of an interpolation its method, of a strip the timesteps of its points."""


@dataclass
class Record:
    """One run, ready for the archive."""

    config: dict[str, Any]
    name: str
    fingerprint: str
    provenance: dict[str, Any]
    caps: dict[str, Any]
    parameters: int
    steps: int
    finished: bool
    data: dict[str, Any]
    """Human name of the data, its source and normalisation, and SHA-256 of each split that was used."""
    train: list[dict[str, Any]]
    evaluate: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    test_reads: int
    weights: dict[str, dict[str, NDArray[Any]]]
    """`raw` and, when an average is kept, `ema`: name -> array."""
    scores: dict[str, float] = field(default_factory=dict)
    """Final scores on `scored_split`, flat names such as `accuracy`."""
    scored_split: str = "test"
    """`test`, or `validation` for a trial of a sweep."""
    confusion: NDArray[np.int64] | None = None
    class_names: list[str] = field(default_factory=list)
    source: dict[str, str] = field(default_factory=dict)
    """Text of the files that say what the network computes, by path."""
    samples: dict[str, Samples] = field(default_factory=dict)
    interpolations: dict[str, Rows] = field(default_factory=dict)
    strips: dict[str, Rows] = field(default_factory=dict)


@dataclass
class Score:
    """Scores of one way of sampling, over several sets of images drawn with different seeds."""

    values: dict[str, list[float]]
    """One value of each set."""
    passport: dict[str, Any]
    """All that two scores must have in common to be compared."""
    by_class: dict[str, NDArray[Any]] = field(default_factory=dict)
    """(classes,) arrays, of the first set."""

    def mean(self, name: str) -> float:
        """Mean over the sets."""
        return float(np.mean(self.values[name]))

    def deviation(self, name: str) -> float:
        """Standard deviation over the sets, divided by n - 1; not a number for a single set."""
        values = self.values[name]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
