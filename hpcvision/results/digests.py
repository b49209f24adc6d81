"""SHA-256 of every dataset and attribute of an archive, and one digest over them all."""

import hashlib
import json
from typing import Any

import h5py
import numpy as np

TABLE = "digests"


def digest_of_value(value: Any) -> str:
    """SHA-256 of an attribute or array: type, shape and content, whatever the machine's byte order."""
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode()
        return hashlib.sha256(b"text:" + text.encode()).hexdigest()
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        words = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
        content = json.dumps(words).encode()
        head = f"text{array.shape}:"
    else:
        plain = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
        content = plain.tobytes()
        head = f"{plain.dtype.str}{plain.shape}:"
    return hashlib.sha256(head.encode() + content).hexdigest()


def digests_of(file: h5py.File) -> dict[str, str]:
    """`path` of each dataset and `path@name` of each attribute -> SHA-256, without the digest table itself."""
    found: dict[str, str] = {}

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if path.split("/")[0] == TABLE:
            return
        if isinstance(item, h5py.Dataset):
            found[path] = digest_of_value(item[()])
        for name, value in item.attrs.items():
            if not (path == "" and name == "digest"):
                found[f"{path}@{name}"] = digest_of_value(value)

    visit("", file)
    file.visititems(visit)
    return found


def digest_over(digests: dict[str, str]) -> str:
    """One SHA-256 over all others, in the order of their paths."""
    return hashlib.sha256("\n".join(f"{path} {digests[path]}" for path in sorted(digests)).encode()).hexdigest()


def seal(file: h5py.File) -> None:
    """Add the table `/digests` and the root attribute `digest`; nothing may be written afterwards."""
    digests = digests_of(file)
    table = file.create_group(TABLE)
    table.attrs["description"] = (
        "SHA-256 of each dataset (path) and attribute (path@name); see hpcvision.results.digests"
    )
    table["path"] = sorted(digests)
    table["path"].attrs["description"] = "dataset, or attribute as path@name; the root's attributes begin with @"
    table["sha256"] = [digests[path] for path in sorted(digests)]
    table["sha256"].attrs["description"] = "SHA-256 of its type, shape and content, hexadecimal"
    file.attrs["digest"] = digest_over(digests)


def broken_seals(file: h5py.File) -> list[str]:
    """Paths whose content is not what was sealed: changed, missing or added; empty when the file is as written."""
    if TABLE not in file:
        return [TABLE]
    stored = dict(zip(file[f"{TABLE}/path"].asstr()[()], file[f"{TABLE}/sha256"].asstr()[()], strict=True))
    now = digests_of(file)
    broken = [path for path in sorted(stored | now) if stored.get(path) != now.get(path)]
    if file.attrs.get("digest") != digest_over(stored):
        broken.append("@digest")
    return broken
