"""What was found about a model and its data, kept so that a login node need not import torch to find it again."""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from hpcvision.config import RunConfig
from hpcvision.rundir import data_folder, write_json

PACKAGE = Path(__file__).parent.parent
MOST_KNOWN = 1000
"""So many models are remembered, the latest."""


@dataclass(frozen=True)
class Facts:
    """What has to be known of a run before it is handed to a cluster."""

    parameters: int
    """Below the cap of the run's task."""
    stored_numbers: int
    """Parameters and buffers."""


def facts_of(config: RunConfig) -> Facts:
    """The facts about a run whose model is below the cap and whose data is staged; UserError when it is not so.

    Found once for a model, the code of the models and the state of the data, and kept in the user's cache: counting
    imports torch, which takes a login node 1.4 s of CPU time, and reading the data set as long again.
    """
    cache, key = cache_folder() / "checked.json", key_of(config)
    known: dict[str, dict[str, int]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(cache.read_text()))
    with contextlib.suppress(KeyError, TypeError):
        return Facts(**known[key])
    facts = find(config)  # which prepares the data where that was not done yet
    if config.data.source == "synthetic" or prepared_files():
        with contextlib.suppress(OSError):  # then it is found again the next time
            write_json(cache, dict([*known.items(), (key_of(config), asdict(facts))][-MOST_KNOWN:]))
    return facts


def cache_folder() -> Path:
    """What may be lost, of this user: `$XDG_CACHE_HOME/hpcvision`, by default `~/.cache/hpcvision`."""
    home = os.environ.get("HOME") or os.devnull  # in which nothing can be read or written
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "hpcvision")


def find(config: RunConfig) -> Facts:
    """As `facts_of`, whatever is known."""
    from hpcvision import data
    from hpcvision.models.counting import check_cap, stored_numbers_of

    parameters = check_cap(config)
    if config.data.source != "synthetic":
        data.load(config.data, "train", image_size=config.model.image_size, num_classes=config.model.num_classes)
    return Facts(parameters, stored_numbers_of(config.model))


def key_of(config: RunConfig) -> str:
    """SHA-256 over all that the facts depend on."""
    data = {}
    if config.data.source != "synthetic":
        for path in prepared_files():
            status = path.stat()
            data[str(path.absolute())] = [status.st_size, status.st_mtime_ns, status.st_ino]
    parts = {
        "model": config.model.model_dump(mode="json"),
        "task": config.task.kind,
        "track": config.track,
        "data": config.data.model_dump(mode="json"),
        "staged": data,
        "source": digest_of_source(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prepared_files() -> list[Path]:
    """The arrays that data sets were prepared as."""
    return sorted((data_folder() / "prepared").glob("*"))


@lru_cache(maxsize=1)
def digest_of_source() -> str:
    """SHA-256 over the files that define models, caps and data."""
    digest = hashlib.sha256()
    for part in ("config", "models", "data"):
        for path in sorted((PACKAGE / part).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
