"""Where in a file something is, and what is read from there piece by piece."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcvision.results.files import array, reading


@dataclass(frozen=True)
class Place:
    """A group of a file; a file is only open while something is read from it."""

    path: Path
    group: str = "/"

    @contextmanager
    def open(self) -> Iterator[h5py.Group]:
        """The group, for reading and nothing else; what is wrong with the file is a UserError that names it."""
        with reading(self.path, "run", "sweep", "images", group=self.group) as group:
            yield group


@dataclass(frozen=True)
class Images:
    """Stored pictures, (N, H, W, 3) or (rows, points, H, W, 3) uint8; `images[3]` reads that one alone."""

    place: Place
    shape: tuple[int, ...]
    attributes: dict[str, Any]
    """How they were drawn: sampler, steps, guidance_scale, weights; of selected ones the `rule`."""
    labels: NDArray[np.int64]
    """(N,), or (rows, 2) of the two ends."""
    seeds: NDArray[np.int64] | None
    """(N,) seeds of the noise; None for rows."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: Any) -> NDArray[np.uint8]:
        with self.place.open() as group:
            return array(group["images"], chosen)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy  # it is always one
        return self[()].astype(dtype or np.uint8, copy=False)


@dataclass(frozen=True)
class Classes:
    """How a classifier did on each class."""

    confusion: NDArray[np.int64]
    """(C, C); row = true class, column = predicted class."""
    accuracy: NDArray[np.float32]
    """(C,) in [0, 1]."""
    names: list[str]


def plain(value: Any) -> Any:
    """An attribute as a value of Python's own: numbers, words, lists."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
