"""Checkpoints: written beside and renamed, two kept, plain types only; the older is read when the newer is damaged."""

import contextlib
import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from hpcvision.errors import UserError
from hpcvision.rundir import RunDir, atomic_write

FORMAT = 2


def save(rundir: RunDir, content: dict[str, Any]) -> None:
    """Store `content` (tensors and plain types) as the newest checkpoint and keep the one before."""
    # In memory first: on a full disk torch's own writer dies of a RuntimeError that does not say why.
    content_bytes = io.BytesIO()
    torch.save({"format": FORMAT, **content}, content_bytes)
    with atomic_write(rundir.checkpoint.with_suffix(".new")) as file:
        file.write(content_bytes.getbuffer())
    with contextlib.suppress(FileNotFoundError):
        rundir.checkpoint.replace(rundir.previous_checkpoint)
    # A kill here leaves only the previous checkpoint and the complete .new one; load() reads whichever is there.
    rundir.checkpoint.with_suffix(".new").replace(rundir.checkpoint)


def load(rundir: RunDir) -> tuple[dict[str, Any] | None, str]:
    """The newest readable checkpoint, or None when there is none, and a sentence about damaged ones (or "").

    Raises UserError when checkpoints are there but none can be read, or when the format is newer than this code.
    """
    damaged = []
    for path in (rundir.checkpoint.with_suffix(".new"), rundir.checkpoint, rundir.previous_checkpoint):
        if not path.exists():
            continue
        content = read(path)
        if content is None:
            damaged.append(path.name)
            continue
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} has format {content['format']}, this hpcvision reads format {FORMAT}; go on with the version "
                "that wrote it, or start again with --fresh"
            )
        names = " and ".join(damaged)
        said = f"{names} is damaged; going on from {path.name} at step {content['step']:,}" if damaged else ""
        return content, said
    if damaged:
        raise UserError(f"no readable checkpoint in {rundir.folder} ({', '.join(damaged)}); start again with --fresh")
    return None, ""


def drop_newest(rundir: RunDir) -> int:
    """Remove the newest checkpoint, so that the one before is read; gives the step of that, 0 when there is none."""
    for path in (rundir.checkpoint.with_suffix(".new"), rundir.checkpoint):
        path.unlink(missing_ok=True)
    content = read(rundir.previous_checkpoint) if rundir.previous_checkpoint.exists() else None
    return content["step"] if content else 0


def read(path: Path) -> dict[str, Any] | None:
    """The content of one checkpoint file, or None when it is cut off or altered."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not check the CRCs that it stores, and gives uninitialised memory for an entry whose flags
            # have changed to those of a folder.
            if archive.testzip() is not None or any(entry.external_attr for entry in archive.infolist()):
                return None
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "format" in content else None
