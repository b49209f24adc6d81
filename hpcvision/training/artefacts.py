"""What a finished run adds to its archive; for a diffusion model its samples, interpolations and strips."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpcvision import diffusion
from hpcvision.config import SampleConfig
from hpcvision.config.run import Weights
from hpcvision.results.record import Rows, Samples
from hpcvision.seeding import generator
from hpcvision.training.generation import Blend, Generator, Progress, balanced_labels, unseen

BEST_OF = 4  # one of so many random samples
STRIPS = 4
PREVIEW_IMAGES, PREVIEW_STEPS = 16, 20

Judge = Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.float64]]
"""(images (N, H, W, 3), labels (N,)) -> (N,), higher is better."""


@dataclass
class Artefacts:
    """What a finished run adds to its archive."""

    scores: dict[str, float] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None
    samples: dict[str, Samples] = field(default_factory=dict)
    interpolations: dict[str, Rows] = field(default_factory=dict)
    strips: dict[str, Rows] = field(default_factory=dict)


class Gallery:
    """The pictures of a finished diffusion run, from one set of its weights; all made with the run's own settings."""

    def __init__(
        self,
        images: Generator,
        model: nn.Module,
        weights: Weights,
        noise_power: dict[int, float] | None,
        progress: Progress = unseen,
    ) -> None:
        self.images, self.model, self.weights, self.noise_power = images, model, weights, noise_power
        self.progress = progress
        self.settings, self.classes = images.config.sample, images.config.model.num_classes

    @property
    def deterministic_settings(self) -> SampleConfig:
        """The run's settings with a sampler that adds no noise, which would break the way between two images."""
        if self.settings.sampler in ("ddim", "ddpm"):
            return self.settings.model_copy(update={"sampler": "ddim", "eta": 0.0, "variance": "small"})
        return self.settings

    def random(self) -> Samples:
        """Samples of seeds 0, 1, 2, ..., never selected, every class as often as any other."""
        count = self.settings.images
        labels = balanced_labels(count, self.classes)
        return self.samples(list(range(count)), labels, self.settings)

    def samples(self, seeds: list[int], labels: torch.Tensor, settings: SampleConfig) -> Samples:
        """Images of the given seeds and labels."""
        images = self.images.sample(
            self.model, seeds, labels, settings, noise_power=self.noise_power, progress=self.progress
        )
        attributes = self.images.attributes(settings, self.weights)
        return Samples(images, labels.numpy(), np.asarray(seeds), attributes)

    def best(self, samples: Samples, judge: Judge | None, rule: str) -> Samples:
        """The best of the samples by a stated rule: what `judge` says, else the model's own denoising error."""
        if judge is None:
            merit = -self.images.denoising_error(self.model, samples.images, torch.from_numpy(samples.labels))
            rule = "smallest denoising error of the model itself, mean over 16 timesteps"
        else:
            merit = judge(samples.images, samples.labels)
        chosen = np.argsort(-merit, kind="stable")[: max(1, len(merit) // BEST_OF)]
        rule = f"the {len(chosen)} of the {len(samples.images)} random ones with the {rule}"
        return Samples(
            samples.images[chosen],
            samples.labels[chosen],
            samples.seeds[chosen],
            samples.attributes | {"rule": rule},
            merit[chosen],
        )

    def interpolations(self) -> dict[str, Rows]:
        """Between two classes on the arc between their noises, and within one class on the straight line.

        Pair i goes from the sample of seed 2 i to that of seed 2 i + 1. Sampling is deterministic, and the predictions
        for the two labels are mixed in the same proportion, so the way has no jump.
        """
        pairs, classes = self.settings.interpolation_pairs, self.classes
        first = torch.randint(classes, (pairs,), generator=generator(self.images.config.seed, "pairs"))
        further = torch.randint(1, classes, (pairs,), generator=generator(self.images.config.seed, "pairs", 1))
        between = torch.stack([first, (first + further) % classes], dim=1)
        within = torch.stack([first, first], dim=1)
        seeds = torch.arange(2 * pairs).reshape(pairs, 2)
        points = self.settings.interpolation_points
        return {
            "slerp": self.way(seeds, between, points, "slerp"),
            "linear": self.way(seeds, within, points, "linear"),
        }

    def way(self, seeds: torch.Tensor, ends: torch.Tensor, points: int, method: str) -> Rows:
        """Rows of images from the samples of seeds[:, 0] to those of seeds[:, 1]; ends: (pairs, 2) labels."""
        noise = diffusion.image_noise(seeds.flatten().tolist(), self.images.shape)
        rows = self.between(noise.unflatten(0, (len(seeds), 2)), ends, points, method)
        rows.attributes |= {"seeds": seeds.numpy()}
        return rows

    def between(self, noise: torch.Tensor, ends: torch.Tensor, points: int, method: str) -> Rows:
        """As `way`, from noise (pairs, 2, 3, H, W)."""
        settings = self.deterministic_settings
        fractions = torch.linspace(0, 1, points)
        path = {"slerp": diffusion.slerp, "linear": diffusion.linear}[method]
        # The way within one class asks the model about one label instead of two.
        blend = Blend(ends[:, 1:].expand(len(ends), points).flatten(), fractions.expand(len(ends), points).flatten())
        noises = torch.stack([path(one, other, fractions) for one, other in noise])
        shape = (len(ends), points)
        flat = self.images.sample(
            self.model,
            [0] * noises[:, :, 0, 0, 0].numel(),
            ends[:, :1].expand(shape).flatten(),
            settings,
            noise=noises.flatten(0, 1),
            blend=None if torch.equal(ends[:, 0], ends[:, 1]) else blend,
            progress=self.progress,
        )
        attributes = self.images.attributes(settings, self.weights) | {"method": method}
        return Rows(flat.reshape(*shape, *flat.shape[1:]), ends.numpy(), attributes)

    def denoising(self) -> Rows:
        """The way of the first samples of different classes from noise to image."""
        labels = balanced_labels(min(STRIPS, self.classes), self.classes)
        settings = self.deterministic_settings
        points = self.settings.interpolation_points
        images, timesteps = self.images.watched(self.model, list(range(len(labels))), labels, settings, points=points)
        attributes = self.images.attributes(settings, self.weights) | {"timesteps": timesteps}
        return Rows(images, torch.stack([labels, labels], dim=1).numpy(), attributes)

    def preview(self) -> NDArray[np.uint8]:
        """(16, H, W, 3) uint8 of the same noise and labels at every time, in few steps: to watch a training."""
        steps = min(self.settings.steps, PREVIEW_STEPS)
        settings = self.deterministic_settings.model_copy(update={"steps": steps})
        labels = balanced_labels(PREVIEW_IMAGES, self.classes)
        return self.images.sample(self.model, list(range(PREVIEW_IMAGES)), labels, settings)
