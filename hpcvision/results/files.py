"""The one place that opens HDF5 files, and writes a whole new one beside the old before it takes its name."""

import io
from collections.abc import Callable
from pathlib import Path

import h5py

from hpcvision.errors import UserError
from hpcvision.rundir import atomic_write


def open_archive(path: Path) -> h5py.File:
    """An archive for reading, without a lock: shared file systems refuse locks, and a public file never changes."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file: {error}") from None


def write_archive(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Let `fill` write into a new file and put it in the place of `path` when it is whole and on disk.

    It is built in memory (a run's archive is a few MB), so a kill can only ever leave the old file or the new one.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest") as file:
        fill(file)
    with atomic_write(path) as target:
        target.write(memory.getbuffer())
