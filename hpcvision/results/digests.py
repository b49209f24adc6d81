"""SHA-256 of every dataset and attribute of an archive, and one digest over them all."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import h5py
import numpy as np

from hpcvision.results.files import DAMAGE, array

TABLE = "digests"
DESCRIPTIONS = {
    TABLE: "SHA-256 of each dataset (path) and attribute (path@name); see hpcvision.results.digests",
    f"{TABLE}/path": "dataset, or attribute as path@name; the root's attributes begin with @",
    f"{TABLE}/sha256": "SHA-256 of its type, shape and content, hexadecimal",
}
UNREADABLE = "unreadable"


def digest_of_value(value: Any) -> str:
    """SHA-256 of an attribute or array: type, shape and content, whatever the machine's byte order."""
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode()
        return hashlib.sha256(b"text:" + text.encode()).hexdigest()
    values = np.asarray(value)
    if values.dtype.kind in "OSU":
        words = [item.decode() if isinstance(item, bytes) else str(item) for item in values.ravel().tolist()]
        content = json.dumps(words).encode()
        head = f"text{values.shape}:"
    else:
        plain = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
        content = plain.tobytes()
        head = f"{plain.dtype.str}{plain.shape}:"
    return hashlib.sha256(head.encode() + content).hexdigest()


def digests_of(file: h5py.Group) -> dict[str, str]:
    """`path` of each dataset and `path@name` of each attribute -> SHA-256, without the values of the table itself.

    What cannot be read has UNREADABLE for its SHA-256.
    """
    found: dict[str, str] = {}

    def keep(path: str, read: Callable[[], Any]) -> None:
        try:
            found[path] = digest_of_value(read())
        except DAMAGE:
            found[path] = UNREADABLE

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and path not in DESCRIPTIONS:
            keep(path, lambda: array(item))
        for name in item.attrs:
            if not (path == "" and name == "digest"):
                keep(f"{path}@{name}", partial(item.attrs.__getitem__, name))

    visit("", file)
    file.visititems(visit)
    return found


def digest_over(digests: dict[str, str]) -> str:
    """One SHA-256 over all others, in the order of their paths."""
    return hashlib.sha256("\n".join(f"{path} {digests[path]}" for path in sorted(digests)).encode()).hexdigest()


def seal(file: h5py.File) -> None:
    """Add the table `/digests` and the root attribute `digest`; nothing may be written afterwards."""
    table = file.create_group(TABLE)
    table.attrs["description"] = DESCRIPTIONS[TABLE]
    digests = digests_of(file)
    columns = {path: DESCRIPTIONS[f"{TABLE}/{path}"] for path in ("path", "sha256")}
    digests |= {f"{TABLE}/{name}@description": digest_of_value(text) for name, text in columns.items()}
    table["path"] = sorted(digests)
    table["sha256"] = [digests[path] for path in sorted(digests)]
    for name, text in columns.items():
        table[name].attrs["description"] = text
    file.attrs["digest"] = digest_over(digests)


def broken_seals(file: h5py.Group) -> list[str]:
    """Paths whose content is not what was sealed: changed, missing, added or unreadable; empty when all is as written.

    Files of the first days of format 1 have no hashes of the table's own descriptions.
    """
    if TABLE not in file:
        return [TABLE]
    try:
        columns = (array(file[f"{TABLE}/{name}"]).tolist() for name in ("path", "sha256"))
        stored = dict(zip(*columns, strict=True))
    except DAMAGE:
        return [TABLE]
    now = digests_of(file)
    if f"{TABLE}@description" not in stored:
        now = {path: digest for path, digest in now.items() if not path.startswith(f"{TABLE}")}
    broken = [path for path in sorted(stored | now) if stored.get(path) != now.get(path) or now.get(path) == UNREADABLE]
    if file.attrs.get("digest") != digest_over(stored):
        broken.append("@digest")
    return broken
