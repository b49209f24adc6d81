"""The images of a run on the device, and which of them, how varied, make up the batch of every step."""

from functools import cached_property
from typing import Any

import torch

from hpcvision import data
from hpcvision.config import RunConfig
from hpcvision.data.augment import augment, parameters_of, uniforms
from hpcvision.data.order import batch_indices
from hpcvision.distributed import Rank
from hpcvision.seeding import generator

HELD: tuple[data.SplitName, ...] = ("train", "validation")  # on the device during the whole run

# A generator sees pixels in [-1, 1], whatever the data set.
GENERATOR_STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Batches:
    """The images of a run on the device, and the batch of every step."""

    def __init__(self, config: RunConfig, rank: Rank) -> None:
        self.config = config
        self.rank = rank
        self.rows = rank.rows(config.train.local_batch_size(rank.world_size))
        self.shape = {"image_size": config.model.image_size, "num_classes": config.model.num_classes}
        if config.task.kind == "classify":
            self.mean, self.std = data.statistics(config.data, **self.shape)
        else:
            self.mean, self.std = GENERATOR_STATISTICS
        self._splits: dict[str, data.Split] = {}

    def split(self, name: data.SplitName) -> data.Split:
        """Images (N, 3, H, W) uint8 and labels (N,) on the device; the test split is not kept."""
        if name in self._splits:
            return self._splits[name]
        loaded = data.load(self.config.data, name, **self.shape)
        split = data.Split(loaded.images.to(self.rank.device), loaded.labels.to(self.rank.device))
        if name in HELD:
            self._splits[name] = split
        return split

    @cached_property
    def described(self) -> dict[str, Any]:
        """Name and source of the data, what pixels from 0 to 1 are shifted and divided by, digests of what is held.

        Those are computed when first asked for, not before a run.
        """
        about = {"name": data.describe(self.config.data, **self.shape), "source": self.config.data.source}
        statistics = {"mean": list(self.mean), "standard_deviation": list(self.std)}
        return about | statistics | {f"{split}_sha256": self.digest(split) for split in HELD}

    def digest(self, split: data.SplitName) -> str:
        """SHA-256 over the images and labels of a split."""
        return data.sha256_of(self.split(split))

    def draw(self, step: int, following: int = 0) -> dict[str, torch.Tensor]:
        """Which images this rank sees at `step`, and the random numbers of their augmentation.

        following: so many more, from where its rows of the global batch end; behind the last row comes the first.
        Drawn on the CPU, so that every kind of device sees the same; a few numbers per image.
        """
        config, size = self.config, self.config.train.global_batch_size
        numbers = uniforms(config.data.augmentation, size, 3, generator(config.seed, "augment", step))
        indices = batch_indices(config.seed, step, size, len(self.split("train").labels))
        rows = torch.arange(self.rows.start, self.rows.stop + following) % size
        return {
            "indices": indices[rows],
            "augmentation": numbers[rows],
        }

    def local(self, drawn: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's augmented, normalised images (b, 3, H, W) float32 and labels (b,); drawn: on the device."""
        images, labels = self.split("train")
        config = self.config.data.augmentation
        parameters = parameters_of(config, drawn["augmentation"], images.shape[-1])
        batch = augment(images[drawn["indices"]], parameters, config, mean=self.mean, std=self.std)
        return self.layout(batch), labels[drawn["indices"]]

    def layout(self, images: torch.Tensor) -> torch.Tensor:
        """The images in the memory format of the run."""
        last = self.config.train.channels_last
        return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def to_device(self, drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What was drawn, on the device; it may wait."""
        return {name: values.to(self.rank.device) for name, values in drawn.items()}

    def picture(self, images: torch.Tensor) -> torch.Tensor:
        """Images as the network reads them, back in [0, 1]."""
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)
