"""The data sets by name: their images, names, constants and hashes; `fetch` is the only thing that downloads."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hpcvision.config.data import SOURCE_SHAPES, SYNTHETIC_SHAPES, DataConfig
from hpcvision.data import addnist, cifar100, synthetic
from hpcvision.data.splits import SPLIT_NAMES, Split, SplitName, concatenate, fetch_command
from hpcvision.errors import UserError
from hpcvision.rundir import data_folder

__all__ = [
    "DATASETS",
    "SPLIT_NAMES",
    "Split",
    "SplitName",
    "class_names",
    "data_folder",
    "describe",
    "fetch",
    "inception_folder",
    "load",
    "sha256",
    "sha256_of",
    "statistics",
    "status",
]


class Dataset(Protocol):
    """What each module of a data set offers; image_size tells the forms of `synthetic` apart."""

    def load(self, split: SplitName, image_size: int, validation_seed: int, /) -> Split:
        """The images and classes of a split."""

    def describe(self, image_size: int, /) -> str:
        """The name for reports."""

    def statistics(self, image_size: int, /) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of every channel, images in [0, 1]."""

    def class_names(self, image_size: int, /) -> list[str]:
        """Names by class index."""

    def status(self, image_size: int, /) -> dict[str, Any]:
        """`folder`, `present`, `missing` and `prepared`."""


DATASETS: dict[str, Dataset] = {"cifar100": cifar100, "addnist": addnist, "synthetic": synthetic}
FETCHERS: dict[str, Callable[[], Path]] = {"cifar100": cifar100.fetch, "addnist": addnist.fetch}


def load(config: DataConfig, split: SplitName, *, image_size: int, num_classes: int) -> Split:
    """Images (N, 3, image_size, image_size) uint8 and labels (N,) int64 of a split, the same in every process.

    With `train_on="train+validation"`, "train" ends with the validation images; "validation" stays what it is.
    """
    dataset = _dataset(config, image_size=image_size, num_classes=num_classes)
    images = dataset.load(split, image_size, config.validation_seed)
    if split == "train" and config.train_on == "train+validation":
        return concatenate(images, dataset.load("validation", image_size, config.validation_seed))
    return images


def describe(config: DataConfig, *, image_size: int, num_classes: int) -> str:
    """The name for reports, such as `CIFAR-100` or `AddNIST regenerated from MNIST`."""
    return _dataset(config, image_size=image_size, num_classes=num_classes).describe(image_size)


def statistics(config: DataConfig, *, image_size: int, num_classes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Normalisation constants: mean and standard deviation of every channel, images in [0, 1]."""
    return _dataset(config, image_size=image_size, num_classes=num_classes).statistics(image_size)


def class_names(config: DataConfig, *, image_size: int, num_classes: int) -> list[str]:
    """The names of the classes, by class index."""
    return _dataset(config, image_size=image_size, num_classes=num_classes).class_names(image_size)


def sha256(config: DataConfig, split: SplitName, *, image_size: int, num_classes: int) -> str:
    """64 hexadecimal digits: SHA-256 over the images' bytes, then the labels' (int64, little-endian)."""
    return sha256_of(load(config, split, image_size=image_size, num_classes=num_classes))


def sha256_of(split: Split) -> str:
    """As `sha256`, of a split that is loaded already, on any device."""
    digest = hashlib.sha256(split.images.cpu().contiguous().numpy().data)
    digest.update(split.labels.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def fetch(name: str) -> Path | None:
    """Downloads a data set unless it is there, prepares it, and gives its folder; None for what needs no fetching."""
    _check_name(name)
    fetcher = FETCHERS.get(name)
    return fetcher() if fetcher else None


def inception_folder() -> Path:
    """Where the weights of the FID's network are staged."""
    return data_folder() / "inception"


def status(name: str) -> dict[str, Any]:
    """What is there of a data set: name, description, folder, present and missing files, prepared, counts, fetch.

    counts: images of each split, by split; empty where the data can not be loaded now without a fetch.
    """
    _check_name(name)
    config = DataConfig.model_validate({"source": name})
    image_size, num_classes = SOURCE_SHAPES.get(name, SOURCE_SHAPES["cifar100"])
    found = DATASETS[name].status(image_size)
    counts = {}
    if found["prepared"]:
        shape = {"image_size": image_size, "num_classes": num_classes}
        counts = {split: len(load(config, split, **shape).labels) for split in SPLIT_NAMES}
    return {
        "name": name,
        "description": DATASETS[name].describe(image_size),
        **found,
        "counts": counts,
        "fetch": fetch_command(name) if name in FETCHERS else "",
    }


def _check_name(name: str) -> None:
    if name not in DATASETS:
        raise UserError(f"there is no data set {name!r}; choose one of {', '.join(DATASETS)}")


def _dataset(config: DataConfig, *, image_size: int, num_classes: int) -> Dataset:
    wanted = SOURCE_SHAPES.get(config.source)
    shapes = [wanted] if wanted else SYNTHETIC_SHAPES
    if (image_size, num_classes) not in shapes:
        raise UserError(
            f"data.source={config.source} has (side, classes) {' or '.join(map(str, shapes))}, but "
            f"({image_size}, {num_classes}) was asked for; set model.image_size and model.num_classes"
        )
    return DATASETS[config.source]
