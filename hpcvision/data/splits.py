"""Images with labels: where they lie, how files are checked, and how prepared arrays are written and mapped."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from hpcvision.checksum import sha256_of_array
from hpcvision.errors import UserError
from hpcvision.rundir import data_folder

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")

# Raised whenever what a prepared file holds changes its meaning; files of another format are made anew.
PREPARED_FORMAT = 1


class Split(NamedTuple):
    """Images and their classes, in a fixed order."""

    images: torch.Tensor
    """(N, 3, H, W) uint8."""
    labels: torch.Tensor
    """(N,) int64."""


def concatenate(*splits: Split) -> Split:
    """All images of `splits`, one after the other."""
    return Split(torch.cat([split.images for split in splits]), torch.cat([split.labels for split in splits]))


def fetch_command(name: str) -> str:
    """What to type to get a data set; compute nodes of a cluster usually reach no internet."""
    return f"hpcvision data fetch {name}"


def read_checked(path: Path, md5: str, *, name: str) -> bytes:
    """The bytes of a downloaded file of data set `name`, whose MD5 is as published."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise UserError(
            f"{name}: cannot read {path.name} in {path.parent} ({problem.strerror}); run `{fetch_command(name)}` where "
            f"there is internet (a login node), or set HPCVISION_DATA (now {data_folder()}) to the folder that has it"
        ) from None
    # Not a matter of security, which FIPS-mode clusters need to be told.
    seen = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if seen != md5:
        raise UserError(
            f"{name}: {path} has MD5 {seen}, expected {md5}; delete it and run `{fetch_command(name)}` again where "
            "there is internet (a login node)"
        )
    return content


def prepared_folder() -> Path:
    """Where the arrays lie that hpcvision makes from downloaded files."""
    return data_folder() / "prepared"


def save_prepared(name: str, parts: Mapping[str, Split], *, facts: Mapping[str, Any]) -> None:
    """Writes all parts as one image array and one label array, then a JSON with their SHA-256, bounds and `facts`.

    Several processes may do so at once: each writes beside and renames, all write the same bytes, and the JSON, which
    alone makes the arrays count, comes last.
    """
    whole = concatenate(*parts.values())
    folder = prepared_folder()
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for kind, tensor in (("images", whole.images), ("labels", whole.labels)):
        array = tensor.numpy()
        digests[kind] = hashlib.sha256(array.data).hexdigest()
        temporary = _beside(folder / f"{name}.{kind}.npy")
        with temporary.open("wb") as file:
            np.save(file, array)
            _flush(file.fileno())
        temporary.replace(folder / f"{name}.{kind}.npy")
    bounds, start = {}, 0
    for part, split in parts.items():
        bounds[part] = [start, start + len(split.labels)]
        start += len(split.labels)
    description = {"format": PREPARED_FORMAT, "bounds": bounds, "sha256": digests, "facts": dict(facts)}
    temporary = _beside(folder / f"{name}.json")
    with temporary.open("w", encoding="utf-8") as text:
        text.write(json.dumps(description, indent=1) + "\n")
        text.flush()
        _flush(text.fileno())
    temporary.replace(folder / f"{name}.json")


def prepared_description(name: str) -> dict[str, Any] | None:
    """What the JSON beside prepared arrays says, or None where there are none (of this format)."""
    try:
        description = json.loads((prepared_folder() / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) and description.get("format") == PREPARED_FORMAT else None


def load_prepared(name: str) -> dict[str, Split] | None:
    """The parts that `save_prepared` wrote, memory-mapped, or None where there are none or a byte is changed."""
    description = prepared_description(name)
    if description is None:
        return None
    folder = prepared_folder()
    try:
        # Copy-on-write: the pages are shared and nobody can change the file, yet torch gets an array it calls writable.
        images = np.load(folder / f"{name}.images.npy", mmap_mode="c")
        labels = np.load(folder / f"{name}.labels.npy", mmap_mode="c")
    except (OSError, ValueError):
        return None
    count = max(end for _, end in description["bounds"].values())
    if images.dtype != np.uint8 or labels.dtype != np.int64 or not len(images) == len(labels) == count:
        return None
    for kind in ("images", "labels"):
        if sha256_of_array(folder / f"{name}.{kind}.npy") != description["sha256"][kind]:
            return None
    whole = Split(torch.from_numpy(images), torch.from_numpy(labels))
    return {
        part: Split(whole.images[start:end], whole.labels[start:end])
        for part, (start, end) in description["bounds"].items()
    }


def prepared_parts(name: str, make: Callable[[], tuple[Mapping[str, Split], Mapping[str, Any]]]) -> Mapping[str, Split]:
    """The prepared parts as memory maps; `make` gives parts and facts anew where there are none, or damaged ones.

    A folder that is full or read-only only costs the cache.
    """
    found = load_prepared(name)
    if found is not None:
        return found
    try:
        parts, facts = make()
    except UserError as problem:
        if prepared_description(name) is None:
            raise
        raise UserError(
            f"{prepared_folder() / name}.images.npy or .labels.npy is damaged and cannot be made anew; {problem}"
        ) from None
    try:
        save_prepared(name, parts, facts=facts)
    except OSError:
        return parts
    return load_prepared(name) or parts


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def _flush(descriptor: int) -> None:
    # Without it a crash of the node could leave a renamed but empty file on some file systems.
    os.fsync(descriptor)
