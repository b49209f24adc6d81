"""The one place that opens HDF5 files, and writes a whole new one beside the old before it takes its name."""

from collections.abc import Callable
from pathlib import Path

import h5py

from hpcvision.errors import UserError
from hpcvision.rundir import atomic_write


def open_archive(path: Path) -> h5py.File:
    """An archive for reading, without a lock: shared file systems refuse locks, and a public file never changes."""
    if not path.exists():
        raise UserError(f"{path} does not exist; a run writes its results.h5 at the first checkpoint")
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file: {error}") from None


def write_archive(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Let `fill` write into a new file and put it in the place of `path` when it is whole and on disk.

    A kill can only ever leave the old file or the new one. The oldest file format that holds the content is used, so
    that old tools can read it.
    """
    with atomic_write(path) as target, h5py.File(target, "w") as file:
        fill(file)
