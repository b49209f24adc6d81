"""AddNIST (Geada et al. 2024, arXiv:2404.02189): one MNIST digit per colour channel, the class is their sum - 1."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcvision.data.splits import (
    SPLIT_NAMES,
    Split,
    SplitName,
    fetch_command,
    load_prepared,
    prepared_parts,
    read_checked,
)
from hpcvision.errors import UserError
from hpcvision.rundir import data_folder
from hpcvision.seeding import generator

CLASSES = 20
# Images of each class that are drawn, and how many of all each split gets; the official files have the same numbers.
TRAINING_PER_CLASS, TEST_PER_CLASS = 3_000, 500
SIZES: dict[SplitName, int] = {"train": 45_000, "validation": 15_000, "test": 10_000}

# MD5 of the unpacked files; those in torchvision's source are of the .gz files, which a user may have deleted.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MEAN, STANDARD_DEVIATION = 0.1307, 0.3081

# Files of the official data set, by split.
OFFICIAL_NAMES: dict[SplitName, str] = {"train": "train", "validation": "valid", "test": "test"}
# A float32 round trip of a grey level moves it by less than 1e-4; anything else was not made from whole grey levels.
LARGEST_ROUNDING_ERROR = 0.01

# The draw is part of the data: it never depends on the seed of a run.
GENERATION_SEED = 0


def load(split: SplitName, _image_size: int, _validation_seed: int) -> Split:
    """45,000 training, 15,000 validation or 10,000 test images, (N, 3, 28, 28) uint8.

    The official arrays if they are in `addnist/`, else composites drawn from MNIST by the rule of the published
    generator (RobGeada/cvpr-nas-datasets, gen_multnist_data.py): classes are balanced, and within a class every triple
    of digits is equally frequent in expectation. Training and validation digits come from MNIST's training set, test
    digits from its test set, so a digit of a validation image has in general been trained on. Unlike the published
    code, which draws the final images with replacement and can so put one into training and validation, no composite
    (the same three MNIST images in the same order) occurs twice here.
    """
    return _parts()[split]


def describe(_image_size: int) -> str:
    """The name for reports, which says which of the two forms is in use."""
    return "AddNIST (official files)" if _is_official() else "AddNIST regenerated from MNIST"


def statistics(_image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """MNIST's mean and standard deviation for every channel, images in [0, 1]."""
    return (MEAN,) * 3, (STANDARD_DEVIATION,) * 3


def class_names(_image_size: int) -> list[str]:
    """`sum 1` to `sum 20`, by class index."""
    return [f"sum {label + 1}" for label in range(CLASSES)]


def fetch() -> Path:
    """Downloads MNIST (12 MB) unless it or the official AddNIST is there, prepares, and gives the source's folder."""
    from torchvision.datasets import MNIST

    if not _is_official():
        try:
            MNIST(str(data_folder()), download=True)
        except (OSError, RuntimeError) as problem:
            raise UserError(
                f"addnist: the download of MNIST to {data_folder()} failed ({str(problem).splitlines()[0]}); it needs "
                "internet (a login node)"
            ) from None
    _parts()
    return _folder()


def status(_image_size: int) -> dict[str, Any]:
    """Which source files are present or missing, and whether the arrays are prepared."""
    names = [path.name for path in _official_paths()] if _is_official() else list(MNIST_MD5)
    present = [name for name in names if (_folder() / name).is_file()]
    return {
        "folder": str(_folder()),
        "present": present,
        "missing": [name for name in names if name not in present],
        "prepared": load_prepared(_prepared_name()) is not None,
    }


def triples_by_class() -> list[list[tuple[int, int, int]]]:
    """For every class, all ordered (red, green, blue) digits with red + green + blue - 1 = class; 915 in all."""
    triples: list[list[tuple[int, int, int]]] = [[] for _ in range(CLASSES)]
    for red, green, blue in itertools.product(range(10), repeat=3):
        if 1 <= red + green + blue <= CLASSES:
            triples[red + green + blue - 1].append((red, green, blue))
    return triples


def copies_per_triple(per_class: int, *, test: bool) -> list[int]:
    """For every class, how many candidates each of its digit triples gets.

    The published generator weighs a triple with 1 / (20 v) of all images, where v counts the triples of its class that
    a random three quarters (training) or the other quarter (test) holds; yet it then draws from all triples, hence
    4/3 or 4 times too many candidates, of which `per_class` are kept at random.
    """
    copies = []
    for triples in triples_by_class():
        three_quarters = int(0.75 * len(triples))
        copies.append(per_class // (len(triples) - three_quarters if test else three_quarters))
    return copies


def draw_composites(digits: torch.Tensor, per_class: int, *, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`per_class` different composites of every class in random order: MNIST indices and classes.

    digits: (M,) int64, MNIST's own labels -> indices: (20 per_class, 3) int64 into M; labels: (20 per_class,) int64.
    """
    stream = generator(GENERATION_SEED, "addnist", int(test))
    triples = triples_by_class()
    copies = torch.tensor(copies_per_triple(per_class, test=test))
    of_class = torch.tensor([label for label in range(CLASSES) for _ in triples[label]])
    repeats = copies[of_class]
    labels = of_class.repeat_interleave(repeats)
    wanted = torch.tensor(list(itertools.chain.from_iterable(triples))).repeat_interleave(repeats, dim=0)
    # The images of digit d are by_digit[first[d] : first[d] + count[d]].
    by_digit = torch.argsort(digits, stable=True)
    count = torch.bincount(digits, minlength=10)
    first = count.cumsum(0) - count
    # Uniform doubles and stable sorts only: the images enter every archive as a hash, so no randperm or multinomial,
    # whose algorithms have changed between releases of torch.
    uniform = torch.rand(wanted.shape, dtype=torch.float64, generator=stream)
    indices = by_digit[first[wanted] + (uniform * count[wanted]).long()]

    code = (indices[:, 0] * len(digits) + indices[:, 1]) * len(digits) + indices[:, 2]
    unique = torch.from_numpy(np.unique(code.numpy(), return_index=True)[1])
    indices, labels = indices[unique], labels[unique]
    shuffled = torch.argsort(torch.rand(len(labels), dtype=torch.float64, generator=stream), stable=True)
    sorted_by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    candidates = torch.bincount(labels, minlength=CLASSES)
    if int(candidates.min()) < per_class:
        raise ValueError(f"{len(digits)} digits give only {int(candidates.min())} of {per_class} composites of a class")
    starts = candidates.cumsum(0) - candidates
    kept = sorted_by_class[(starts[:, None] + torch.arange(per_class)).flatten()]
    kept = kept[torch.argsort(torch.rand(len(kept), dtype=torch.float64, generator=stream), stable=True)]
    return indices[kept], labels[kept]


def _official_paths() -> list[Path]:
    stems = OFFICIAL_NAMES.values()
    return [data_folder() / "addnist" / f"{stem}_{part}.npy" for stem in stems for part in ("x", "y")]


def _is_official() -> bool:
    return any(path.exists() for path in _official_paths())


def _folder() -> Path:
    return data_folder() / "addnist" if _is_official() else data_folder() / "MNIST" / "raw"


def _prepared_name() -> str:
    return "addnist_official" if _is_official() else "addnist_regenerated"


def _parts() -> Mapping[str, Split]:
    return prepared_parts(_prepared_name(), _read_all)


def _read_all() -> tuple[Mapping[str, Split], Mapping[str, Any]]:
    if _is_official():
        return _read_all_official(), {"source": describe(28)}
    return _regenerate(), {"source": describe(28), "md5": MNIST_MD5}


def _regenerate() -> dict[str, Split]:
    images, digits = _read_mnist("train")
    indices, labels = draw_composites(digits, TRAINING_PER_CLASS, test=False)
    # Not stratified: the published split into training and validation is not, either.
    end = SIZES["train"]
    test_images, test_digits = _read_mnist("t10k")
    test_indices, test_labels = draw_composites(test_digits, TEST_PER_CLASS, test=True)
    return {
        "train": Split(images[indices[:end]], labels[:end]),
        "validation": Split(images[indices[end:]], labels[end:]),
        "test": Split(test_images[test_indices], test_labels),
    }


def _read_mnist(prefix: str) -> Split:
    # Images here are single digits, (M, 28, 28). Headers: 16 and 8 bytes (LeCun's idx format); the MD5 vouches for it.
    name = f"{prefix}-images-idx3-ubyte"
    pixels = np.frombuffer(read_checked(_folder() / name, MNIST_MD5[name], name="addnist"), np.uint8, offset=16)
    name = f"{prefix}-labels-idx1-ubyte"
    digits = np.frombuffer(read_checked(_folder() / name, MNIST_MD5[name], name="addnist"), np.uint8, offset=8)
    return Split(torch.from_numpy(pixels.reshape(-1, 28, 28).copy()), torch.from_numpy(digits.astype(np.int64)))


def _read_all_official() -> dict[str, Split]:
    return {split: _read_official(split) for split in SPLIT_NAMES}


def _read_official(split: SplitName) -> Split:
    arrays = []
    for part in ("x", "y"):
        path = data_folder() / "addnist" / f"{OFFICIAL_NAMES[split]}_{part}.npy"
        try:
            arrays.append(np.load(path, mmap_mode="r"))
        except (OSError, ValueError) as problem:
            raise UserError(
                f"addnist: cannot read {path} ({problem}); put all six official arrays there, or remove the folder and "
                f"run `{fetch_command('addnist')}` to regenerate them from MNIST"
            ) from None
    x, y = arrays
    size = SIZES[split]
    if x.shape != (size, 3, 28, 28) or y.shape != (size,) or y.min() < 0 or y.max() >= CLASSES:
        raise UserError(
            f"addnist: the official {OFFICIAL_NAMES[split]} arrays must be ({size}, 3, 28, 28) images and ({size},) "
            f"classes below {CLASSES}, but are {x.shape} and {y.shape}; get them again from the authors' page"
        )
    images = np.empty(x.shape, np.uint8)
    # In pieces: the official training images are 423 MB of float32.
    for start in range(0, size, 5000):
        levels = (x[start : start + 5000].astype(np.float64) * STANDARD_DEVIATION + MEAN) * 255
        rounded = np.rint(levels)
        error = float(np.abs(levels - rounded).max())
        # Written so that a NaN fails, too.
        if not (error <= LARGEST_ROUNDING_ERROR and rounded.min() >= 0 and rounded.max() <= 255):
            raise UserError(
                f"addnist: {OFFICIAL_NAMES[split]}_x.npy is not MNIST-normalised (mean {MEAN}, standard deviation "
                f"{STANDARD_DEVIATION}): a pixel lies {error:.3g} grey levels from a whole one in 0..255, the limit is "
                f"{LARGEST_ROUNDING_ERROR}; get it again from the authors' page"
            )
        images[start : start + 5000] = rounded
    return Split(torch.from_numpy(images), torch.from_numpy(y.astype(np.int64)))
