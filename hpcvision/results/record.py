"""What an archive holds, as plain arrays, before it is written and after it is read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1


@dataclass
class Samples:
    """Generated images, (N, H, W, 3) uint8, with labels (N,) and seeds (N,); one seed makes one image."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    seeds: NDArray[np.int64]
    attributes: dict[str, Any]
    """sampler, steps, guidance_scale, weights."""


@dataclass
class Interpolations:
    """Images on the way between two samples: (pairs, points, H, W, 3) uint8, labels (pairs, 2)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    attributes: dict[str, Any]
    """method and the sampler's settings."""


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
    """Human name of the data and SHA-256 of each split that was used."""
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
    samples: dict[str, Samples] = field(default_factory=dict)
    interpolations: dict[str, Interpolations] = field(default_factory=dict)
