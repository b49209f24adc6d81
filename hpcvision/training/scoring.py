"""Scores of generated images: which features are compared with which real images, and what was done to get there."""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpcvision import data, metrics
from hpcvision.config import RunConfig
from hpcvision.data.augment import normalise
from hpcvision.distributed import Rank
from hpcvision.errors import UserError
from hpcvision.metrics.fidelity import (
    INCEPTION_FILE,
    InceptionExtractor,
    float32,
    inception_score,
    kernel_distance,
    precision_recall,
)
from hpcvision.metrics.frechet import Moments, frechet_distance, moments
from hpcvision.metrics.kernel import kernel_distance_by_class
from hpcvision.models import build_model
from hpcvision.rundir import atomic_write
from hpcvision.training.generation import Progress, unseen

SHIPPED = Path(metrics.__file__).with_name("cifar100_features.h5")
FEATURE_BATCH = {"cpu": 100, "cuda": 500}
REFERENCE_IMAGES = 10_000
SUBSET = 1000  # of the kernel distance; fewer where there are fewer images


class Extractor(Protocol):
    """A frozen network that says what images have in common."""

    name: str
    """In the names of scores."""
    frechet_name: str
    """Of its Fréchet distance: `fid` for the one network that may be called so."""
    sha256: str
    """Of its weights."""
    size: int
    """Number of features; fewer images than that leave directions in which nothing is known of them."""
    resize: str
    """What is done to images before the network sees them, in words."""
    classes: int | None
    """Number of classes of this project's data sets that the logits are about, if they are."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) float32 features and (B, C) float32 logits of (B, 3, H, W) uint8 images."""


class ClassifierExtractor:
    """The features of a classifier that this project trained: what its last layer reads."""

    def __init__(self, archive: Path, device: torch.device) -> None:
        from hpcvision.results.reader import read_model  # h5py, which a classifier's first step does not wait for

        config, weights = read_model(archive)
        if config.task.kind != "classify":
            raise UserError(f"{archive} is no classifier (task.kind={config.task.kind}); give the archive of one")
        chosen = weights[config.ema.headline]
        self.sha256 = sha256_of_weights(chosen)
        self.name = "cifar100_features" if archive == SHIPPED else f"features_{self.sha256[:8]}"
        self.frechet_name = "frechet"
        self.classes: int | None = config.model.num_classes
        self.side = config.model.image_size
        self.resize = "none"
        self.statistics = data.statistics(config.data, image_size=self.side, num_classes=config.model.num_classes)
        self.model = build_model(config.model)
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in chosen.items()})
        self.model.eval().to(device)
        last = [module for module in self.model.modules() if isinstance(module, nn.Linear)][-1]
        self.size = last.in_features
        self.features = torch.empty(0)
        last.register_forward_pre_hook(self.keep)

    def keep(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """What the last layer is given."""
        self.features = inputs[0]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits, in fp32 whatever the run's precision, so that scores of all runs compare."""
        mean, std = self.statistics
        with float32(images.device):
            logits = self.model(normalise(images, mean=mean, std=std))
        return self.features, logits


def sha256_of_weights(weights: dict[str, NDArray[Any]]) -> str:
    """SHA-256 over names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    return digest.hexdigest()


def extractor_of(config: RunConfig, given: Path | None, device: torch.device) -> Extractor:
    """The extractor that is asked for, else the shipped classifier where it fits the run's images.

    given: `inception` for the staged weights, a file of such weights, or the archive or folder of a classifier.
    """
    if given == Path("inception"):
        return InceptionExtractor(data.inception_folder() / INCEPTION_FILE, device)
    if given is not None and not given.is_dir() and given.suffix != ".h5":
        return InceptionExtractor(given, device)
    shape = (config.model.image_size, config.model.num_classes)
    if given is None:
        if config.data.source != "cifar100":
            raise UserError(
                f"no features are shipped for data.source={config.data.source}; train a classifier on it and give its "
                "archive with --extractor"
            )
        return ClassifierExtractor(SHIPPED, device)
    archive = given / "results.h5" if given.is_dir() else given
    extractor = ClassifierExtractor(archive, device)
    if (extractor.side, extractor.classes) != shape:
        raise UserError(
            f"{archive} knows {extractor.classes} classes of {extractor.side}x{extractor.side} images, the run draws "
            f"{shape[1]} of {shape[0]}x{shape[0]}; give a classifier of the same data"
        )
    return extractor


def judge_of(
    config: RunConfig, device: torch.device
) -> tuple[Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.float64]] | None, str]:
    """How likely the shipped classifier finds each image's class, in words too; None for other data than CIFAR-100."""
    if config.data.source != "cifar100":
        return None, ""
    extractor = ClassifierExtractor(SHIPPED, device)

    def judge(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        _, logits = extractor(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        chances = logits.double().softmax(1).cpu()
        return chances[torch.arange(len(labels)), torch.from_numpy(labels)].numpy()

    return judge, "highest probability of their class by cifar100_features"


@dataclass(frozen=True)
class Described:
    """Features of a set of images: (N, D) and (N, C) float32 on the CPU, with labels (N,)."""

    features: Tensor
    logits: Tensor
    labels: Tensor


def describe(
    extractor: Extractor, images: Tensor, labels: Tensor, rank: Rank, progress: Progress = unseen
) -> Described:
    """Features of (N, 3, H, W) uint8 images, shared out over the ranks; the same on all."""
    mine = torch.arange(len(images))[rank.index :: rank.world_size]
    parts = []
    for chosen in mine.split(FEATURE_BATCH[rank.device.type]):
        parts.append(extractor(images[chosen].to(rank.device)))
        progress(len(chosen))
    tables = []
    for column in zip(*parts, strict=True):
        table = torch.zeros(len(images), column[0].shape[1], device=rank.device)
        table[mine] = torch.cat(column)
        tables.append(rank.sum(table).cpu())
    return Described(tables[0], tables[1], labels.cpu())


@dataclass(frozen=True)
class Reference:
    """Real images as the extractor sees them."""

    split: str
    sha256: str
    """Of the split's images and labels."""
    described: Described
    moments: Moments


def reference_of(config: RunConfig, split: data.SplitName, extractor: Extractor, rank: Rank) -> Reference:
    """The first 10,000 images of the split with all classes alike, from a cache beside the data where there is one."""
    shape = {"image_size": config.model.image_size, "num_classes": config.model.num_classes}
    whole = data.load(config.data, split, **shape)
    digest = data.sha256_of(whole)
    cache = data.data_folder() / "statistics" / f"{extractor.name}-{extractor.sha256[:16]}-{split}-{digest[:16]}.npz"
    described = read_cache(cache)
    lacking = rank.max(torch.tensor(int(described is None), device=rank.device))  # on any rank: all work together
    if int(lacking) or described is None:
        chosen = balanced(whole.labels, config.model.num_classes)
        described = describe(extractor, whole.images[chosen], whole.labels[chosen], rank)
        if rank.is_main:
            write_cache(cache, described)
    return Reference(split, digest, described, moments(described.features))


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Indices, rising, of the first images of every class, equally many of each and at most 10,000 in all."""
    each = min(int(torch.bincount(labels, minlength=classes).min()), max(1, REFERENCE_IMAGES // classes))
    return torch.cat([(labels == label).nonzero()[:each, 0] for label in range(classes)]).sort().values


def read_cache(path: Path) -> Described | None:
    """What `write_cache` wrote, or None when there is nothing that can be read."""
    try:
        with np.load(path) as stored:
            return Described(*(torch.from_numpy(stored[name]) for name in ("features", "logits", "labels")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_cache(path: Path, described: Described) -> None:
    """Keep the features for later scores, readable as the umask allows; where no file can be written, do without."""
    try:
        with atomic_write(path) as file:
            np.savez(
                file,
                features=described.features.numpy(),
                logits=described.logits.numpy(),
                labels=described.labels.numpy(),
            )
    except OSError:
        return


def score(extractor: Extractor, described: Described, reference: Reference, seed: int) -> dict[str, float]:
    """All scores of one set of images."""
    real = reference.described
    subset = min(SUBSET, len(described.features), len(real.features))
    kernel, _ = kernel_distance(described.features, real.features, subset_size=subset, seed=seed)
    alike = min(len(described.features), len(real.features))  # both depend on the number of images of each set
    precision, recall = precision_recall(described.features[:alike], spread(real.features, alike))
    values = {
        extractor.frechet_name: frechet_distance(moments(described.features), reference.moments),
        "kernel_distance": kernel,
        "precision": precision,
        "recall": recall,
    }
    if extractor.classes is None:
        values["inception_score"] = inception_score(described.logits, seed=seed)[0]
    else:
        values["classifier_agreement"] = agreement(described)
    return values


def spread(features: Tensor, count: int) -> Tensor:
    """(count, D): evenly spaced rows, so that all classes of an ordered set are among them."""
    return features[torch.linspace(0, len(features) - 1, count).round().long()]


def agreement(described: Described) -> float:
    """Share of the images whose class the classifier names."""
    return float((described.logits.argmax(1) == described.labels).double().mean())


def reference_facts(extractor: Extractor, reference: Reference) -> dict[str, float]:
    """How many real images the classifier agrees with, which no generator should be expected to exceed by much."""
    if extractor.classes is None:
        return {}
    return {"reference_classifier_agreement": agreement(reference.described)}


def score_by_class(extractor: Extractor, described: Described, reference: Reference) -> dict[str, NDArray[Any]]:
    """Kernel distance, agreement and counts of every class, for an extractor that knows the classes."""
    if extractor.classes is None:
        return {}
    counts = torch.bincount(described.labels, minlength=extractor.classes)
    right = described.labels[described.logits.argmax(1) == described.labels]
    real = reference.described
    return {
        "class_counts": counts.numpy(),
        "class_agreement": (torch.bincount(right, minlength=extractor.classes) / counts).numpy(),
        "class_kernel_distance": kernel_distance_by_class(
            described.features, described.labels, real.features, real.labels, extractor.classes
        ).numpy(),
    }
