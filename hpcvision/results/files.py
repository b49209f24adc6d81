"""The one place that opens HDF5 files, and writes a whole new one beside the old before it takes its name."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Readers take no lock, whatever the environment says: this variable would beat `locking=False`.
os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
import h5py
import numpy as np
from numpy.typing import NDArray

from hpcvision.errors import UserError
from hpcvision.results.heaps import heaps_are_whole
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
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist; a run writes its results.h5 at the first checkpoint")
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file: {error}") from None


@contextmanager
def reading(path: Path, *kinds: str, group: str = "/", whole: bool = True) -> Iterator[h5py.Group]:
    """An archive of one of these kinds, or a group of it, open for reading.

    whole: look through all datasets, too; without it only attributes may be read in the block.

    Raises UserError, one line that names the file, when it cannot be read, is of another kind or a newer format, reads
    from other files, or when reading in the block fails: do nothing else there.
    """
    with open_archive(path) as file:
        try:
            if not heaps_are_whole(path):
                raise ValueError("the texts in it cannot be read")
            check_format(file, kinds, path)
            check_links(file, group, path, whole=whole)
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
    kind, found = file.attrs.get("kind"), file.attrs.get("format")
    if isinstance(found, int | np.integer) and found > FORMAT:
        raise UserError(f"{path} has format {found}, this hpcvision reads up to {FORMAT}; upgrade it")
    if kind not in kinds:
        raise UserError(f"{path} is not an archive of a {' or '.join(kinds)} (kind={kind!r})")


def check_links(file: h5py.File, group: str, path: Path, *, whole: bool) -> None:
    """Raise UserError for what an archive never has: links to other places, values in other files, second names.

    Each could show what the hashes do not cover, or lead to any file. Of a sweep's runs only those in `group` are
    looked through, as there may be hundreds. whole: also the datasets, which takes 20 microseconds for each.
    """
    strangers: list[bytes] = []
    names: list[bytes] = []

    def look(name: bytes, info: Any) -> None:  # an exception must not leave a callback of HDF5
        (names if info.type == h5py.h5l.TYPE_HARD else strangers).append(name)

    def check(walk: Callable[..., object]) -> None:
        names.clear()
        walk(look, info=True)
        for name in strangers:
            raise UserError(f"{path} has a link to another place at {name.decode(errors='replace')}; links are refused")

    here = file["/"]
    for part in group.strip("/").split("/") if group != "/" else ():
        check(here.id.links.iterate)
        here = here[part]
    check(here.id.links.iterate)
    seen: dict[object, str] = {}
    for name in here:
        child = here[name]
        below: list[bytes] = []
        if isinstance(child, h5py.Group):
            check(child.id.links.iterate if name == "runs" else child.id.links.visit)
            below = list(names)
        for item in (child, *(child[one] for one in below)) if whole else ():
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise UserError(
                    f"{path} has one object under two names, {seen[address]} and {item.name}; it is refused"
                )
            seen[address] = item.name
            if isinstance(item, h5py.Dataset) and (item.is_virtual or item.external):
                raise UserError(f"{path} keeps the values of {item.name} in another file; such are refused")


def array(dataset: h5py.Dataset, chosen: Any = ()) -> NDArray[Any]:
    """The values of a dataset, or of a part of it, in the machine's byte order, words as objects.

    Refuses one whose values lie in other files.
    """
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name} keeps its values in another file")
    if h5py.check_string_dtype(dataset.dtype):
        return np.asarray(dataset.asstr()[chosen])
    values = np.asarray(dataset[chosen])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def write_archive(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Let `fill` write into a new file and put it in the place of `path` when it is whole and on disk.

    A kill can only ever leave the old file or the new one. The oldest file format that holds the content is used, so
    that old tools can read it.
    """
    with atomic_write(path) as target, h5py.File(target, "w") as file:
        fill(file)
