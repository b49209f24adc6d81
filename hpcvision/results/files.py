"""The one place that opens HDF5 files, and writes a whole new one beside the old before it takes its name."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcvision.errors import UserError
from hpcvision.results.record import FORMAT
from hpcvision.rundir import atomic_write

# What h5py, numpy and json say of a file whose bytes are not what they should be.
DAMAGE = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    MemoryError,
)


def open_archive(path: Path) -> h5py.File:
    """An archive for reading, without a lock: shared file systems refuse locks, and a public file never changes."""
    if not path.exists():
        raise UserError(f"{path} does not exist; a run writes its results.h5 at the first checkpoint")
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file: {error}") from None


@contextmanager
def reading(path: Path, *kinds: str, group: str = "/") -> Iterator[h5py.Group]:
    """An archive of one of these kinds, or a group of it, open for reading.

    Raises UserError, one line that names the file, when it cannot be read, is of another kind or a newer format, reads
    from other files, or when reading in the block fails: do nothing else there.
    """
    with open_archive(path) as file:
        try:
            check_format(file, kinds, path)
            check_links(file, group, path)
            yield file[group]
        except UserError:
            raise
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # of a file that is written from this one
            words = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path} is damaged ({words}); take another copy of it") from None


def check_format(file: h5py.File, kinds: tuple[str, ...], path: Path) -> None:
    """Raise UserError when the file is no archive of one of these kinds, or of a newer format."""
    kind = file.attrs.get("kind")
    if kind not in kinds:
        raise UserError(f"{path} is not an archive of a {' or '.join(kinds)} (kind={kind!r})")
    if file.attrs["format"] > FORMAT:
        raise UserError(f"{path} has format {file.attrs['format']}, this hpcvision reads up to {FORMAT}; upgrade it")


def check_links(file: h5py.File, group: str, path: Path) -> None:
    """Raise UserError for a link to another place: an archive has none, and one could lead to any file.

    Of a sweep's runs only those in `group` are looked through, as there may be hundreds.
    """

    found: list[bytes] = []

    def look(name: bytes, info: Any) -> None:
        if info.type != h5py.h5l.TYPE_HARD:
            found.append(name)  # an exception must not leave a callback of HDF5

    def check(walk: Callable[..., object]) -> None:
        walk(look, info=True)
        for name in found:
            raise UserError(f"{path} has a link to another place at {name.decode(errors='replace')}; links are refused")

    here = file["/"]
    for part in group.strip("/").split("/") if group != "/" else ():
        check(here.id.links.iterate)
        here = here[part]
    check(here.id.links.iterate)
    for name in here:
        child = here[name]
        if isinstance(child, h5py.Group):
            check(child.id.links.iterate if name == "runs" else child.id.links.visit)


def array(dataset: h5py.Dataset, chosen: Any = ()) -> NDArray[Any]:
    """The values of a dataset, or of a part of it, words as objects; refuses one whose values lie in other files."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name} keeps its values in another file")
    words = h5py.check_string_dtype(dataset.dtype)
    return np.asarray(dataset.asstr()[chosen] if words else dataset[chosen])


def write_archive(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Let `fill` write into a new file and put it in the place of `path` when it is whole and on disk.

    A kill can only ever leave the old file or the new one. The oldest file format that holds the content is used, so
    that old tools can read it.
    """
    with atomic_write(path) as target, h5py.File(target, "w") as file:
        fill(file)
