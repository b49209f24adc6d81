"""CIFAR-100 (Krizhevsky 2009) from the files that torchvision downloads."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcvision.data.splits import (
    Split,
    SplitName,
    load_prepared,
    prepared_description,
    prepared_parts,
    read_checked,
)
from hpcvision.errors import UserError
from hpcvision.rundir import data_folder
from hpcvision.seeding import generator

# MD5 of the unpacked files, as torchvision.datasets.CIFAR100 lists them.
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
VALIDATION_PER_CLASS = 50
PREPARED = "cifar100"


def load(split: SplitName, _image_size: int, validation_seed: int) -> Split:
    """45,000 training, 5,000 validation or 10,000 test images, (N, 3, 32, 32) uint8.

    Validation is 50 images of every class, drawn from the 50,000 training images by `validation_seed`; both keep the
    order of the original file.
    """
    parts = _parts()
    if split == "test":
        return parts["test"]
    images, labels = parts["train"]
    is_validation = validation_mask(labels, validation_seed)
    chosen = is_validation if split == "validation" else ~is_validation
    # By numpy, which copies the rows in 0.04 s; torch takes 0.14 s.
    return Split(torch.from_numpy(images.numpy()[chosen.numpy()]), labels[chosen])


def validation_mask(labels: torch.Tensor, validation_seed: int) -> torch.Tensor:
    """(N,) bool: which training images are held out, `VALIDATION_PER_CLASS` of every class; labels: (N,) int64."""
    # Random keys sorted by a stable sort, not randperm, whose algorithm is nobody's promise.
    keys = torch.rand(len(labels), dtype=torch.float64, generator=generator(validation_seed, "cifar100/validation"))
    shuffled = torch.argsort(keys, stable=True)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        mask[shuffled[labels[shuffled] == label][:VALIDATION_PER_CLASS]] = True
    return mask


def describe(_image_size: int) -> str:
    """The name for reports."""
    return "CIFAR-100"


def statistics(_image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the 50,000 training images, images in [0, 1]."""
    return (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def class_names(_image_size: int) -> list[str]:
    """The 100 fine labels, by class index."""
    _parts()
    description = prepared_description(PREPARED)
    names = description["facts"]["class_names"] if description else _read_class_names()
    return [str(name) for name in names]


def fetch() -> Path:
    """Downloads the files (169 MB) unless they are there, prepares the arrays, and gives the folder of the files."""
    from torchvision.datasets import CIFAR100

    try:
        CIFAR100(str(data_folder()), download=True)
    except (OSError, RuntimeError) as problem:
        raise UserError(
            f"cifar100: the download to {data_folder()} failed ({str(problem).splitlines()[0]}); it needs internet "
            "(a login node)"
        ) from None
    _parts()
    return _folder()


def status(_image_size: int) -> dict[str, Any]:
    """Which source files are present or missing, and whether the arrays are prepared."""
    present = [name for name in MD5 if (_folder() / name).is_file()]
    return {
        "folder": str(_folder()),
        "present": present,
        "missing": [name for name in MD5 if name not in present],
        "prepared": load_prepared(PREPARED) is not None,
    }


def _folder() -> Path:
    return data_folder() / "cifar-100-python"


def _parts() -> Mapping[str, Split]:
    return prepared_parts(PREPARED, _read_all)


def _read_all() -> tuple[Mapping[str, Split], Mapping[str, Any]]:
    names = _read_class_names()
    return {name: _read_part(name) for name in ("train", "test")}, {"class_names": names, "md5": MD5}


def _read_part(name: str) -> Split:
    # Unpickled only after its MD5 was found right; written by Python 2, hence latin1.
    content = pickle.loads(read_checked(_folder() / name, MD5[name], name="cifar100"), encoding="latin1")
    images = np.ascontiguousarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return Split(torch.from_numpy(images), torch.tensor(content["fine_labels"], dtype=torch.int64))


def _read_class_names() -> list[str]:
    content = pickle.loads(read_checked(_folder() / "meta", MD5["meta"], name="cifar100"), encoding="latin1")
    return list(content["fine_label_names"])
