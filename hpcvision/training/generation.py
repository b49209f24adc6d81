"""Draws images with a diffusion model, shared out over the ranks: image i depends on seed i alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpcvision import diffusion
from hpcvision.config import DiffuseConfig, RunConfig, SampleConfig
from hpcvision.config.run import Precision
from hpcvision.distributed import Rank
from hpcvision.training.precision import autocast

# On a CPU the activations of a larger batch leave the cache.
BATCH = {"cpu": 100, "cuda": 500}
NOISE_POWER_IMAGES = 256  # of the training split, for the analytic variance

Progress = Callable[[float], None]
"""Told how many images' worth of work this rank has done since the last call."""


def unseen(_images: float) -> None:
    """Progress that nobody looks at."""


class DrawingStopped(Exception):
    """This process or another one was asked to stop, with the code of `StopRequest`."""

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(frozen=True)
class Blend:
    """A second label for every image, and how far to go over to it."""

    labels: Tensor
    """(N,) int64."""
    fractions: Tensor
    """(N,) in [0, 1]; 0 is the first label alone."""


class Generator:
    """What stays the same from batch to batch: the task's tables, the device, the arithmetic."""

    def __init__(self, config: RunConfig, rank: Rank, precision: Precision) -> None:
        assert isinstance(config.task, DiffuseConfig), "only diffusion models generate"
        self.config, self.task, self.rank, self.precision = config, config.task, rank, precision
        self.alpha_bars = diffusion.alpha_bar(config.task).to(rank.device)
        self.shape = (3, config.model.image_size, config.model.image_size)
        self.stop_code: Callable[[], int] = lambda: 0
        """Asked after every batch; when it is not 0 on any rank, all stop."""

    @torch.no_grad()
    def sample(
        self,
        model: nn.Module,
        seeds: Sequence[int],
        labels: Tensor,
        settings: SampleConfig,
        *,
        noise: Tensor | None = None,
        blend: Blend | None = None,
        noise_power: dict[int, float] | None = None,
        progress: Progress = unseen,
    ) -> NDArray[np.uint8]:
        """(N, H, W, 3) uint8 images, the same on all ranks; call it on every rank. May raise DrawingStopped.

        seeds: of every image's noise, and of what a stochastic sampler adds;  labels: (N,) int64, -1 for none;  noise:
        (N, 3, H, W) float32 instead of that of the seeds;  noise_power: of that method, for the analytic variance.
        """
        device = self.rank.device
        images = torch.zeros(len(seeds), *self.shape[1:], 3, dtype=torch.uint8, device=device)
        # In rounds, so that a rank waits at most one batch for another, and all stop together.
        for together in torch.arange(len(seeds)).split(BATCH[device.type] * self.rank.world_size):
            chosen = together[self.rank.index :: self.rank.world_size]
            if len(chosen):
                own_seeds = [seeds[i] for i in chosen.tolist()]
                start = diffusion.image_noise(own_seeds, self.shape) if noise is None else noise[chosen]
                own_blend = Blend(blend.labels[chosen], blend.fractions[chosen]) if blend else None
                with autocast(self.precision, device):
                    drawn = diffusion.sampler_of(settings, noise_power)(
                        self.counted(self.predictor(model, labels[chosen], settings, own_blend), settings, progress),
                        self.layout(start),
                        self.alpha_bars,
                        steps=settings.steps,
                        step_noise=diffusion.image_step_noise(own_seeds, self.shape, device=device),
                    )
                images[chosen] = as_pixels(drawn)
            code = int(self.rank.max(torch.tensor(self.stop_code(), device=device)))
            if code:
                raise DrawingStopped(code)
        return self.rank.sum(images).cpu().numpy()

    def predictor(
        self, model: nn.Module, labels: Tensor, settings: SampleConfig, blend: Blend | None = None
    ) -> diffusion.PredictNoise:
        """What the samplers ask: the noise in images of these labels, guided as the settings say."""
        guides = diffusion.within(self.alpha_bars, settings.guidance_interval)

        def of(labels: Tensor) -> diffusion.PredictNoise:
            guided = diffusion.guided(model, labels.to(self.rank.device), settings.guidance_scale, guides)
            return diffusion.as_noise(guided, self.alpha_bars, self.task.prediction, self.task.sigma_data)

        if blend is None:
            return of(labels)
        return diffusion.blended(of(labels), of(blend.labels), blend.fractions.to(self.rank.device))

    def counted(
        self, predict: diffusion.PredictNoise, settings: SampleConfig, progress: Progress
    ) -> diffusion.PredictNoise:
        """The same predictor; every evaluation is progress."""

        def predict_and_tell(images: Tensor, timesteps: Tensor) -> Tensor:
            noise = predict(images, timesteps)
            progress(len(images) / settings.steps)
            return noise

        return predict_and_tell

    @torch.no_grad()
    def watched(
        self,
        model: nn.Module,
        seeds: Sequence[int],
        labels: Tensor,
        settings: SampleConfig,
        *,
        points: int,
        noise: Tensor | None = None,
        progress: Progress = unseen,
    ) -> tuple[NDArray[np.uint8], list[int]]:
        """(N, points, H, W, 3) uint8: what the sampler has at evenly spaced evaluations, then the image it gives.

        With the timesteps of all points but the last. Every rank draws all of them.
        """
        seen: list[tuple[int, Tensor]] = []
        predict = self.counted(self.predictor(model, labels, settings), settings, progress)

        def remember(images: Tensor, timesteps: Tensor) -> Tensor:
            seen.append((int(timesteps[0]), as_pixels(images)))
            return predict(images, timesteps)

        with autocast(self.precision, self.rank.device):
            drawn = diffusion.sampler_of(settings)(
                remember,
                self.layout(diffusion.image_noise(seeds, self.shape) if noise is None else noise),
                self.alpha_bars,
                steps=settings.steps,
                step_noise=diffusion.image_step_noise(seeds, self.shape, device=self.rank.device),
            )
        chosen = [seen[i] for i in np.linspace(0, len(seen) - 1, points - 1).round().astype(int)]
        strip = torch.stack([pixels for _, pixels in chosen] + [as_pixels(drawn)], dim=1)
        return strip.cpu().numpy(), [timestep for timestep, _ in chosen]

    @torch.no_grad()
    def noised_and_found(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor, timesteps: Tensor
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Twice (N, points, H, W, 3) uint8: uint8 images noised to each timestep, and the clean image found in each."""
        predict = self.predictor(model, labels, self.config.sample)
        clean, noise = self.layout(images.float() / 127.5 - 1), self.layout(noise)
        noised_images, found_images = [], []
        for timestep in timesteps.to(self.rank.device):
            a = self.alpha_bars[timestep].expand(len(images))
            noised = diffusion.add_noise(clean, noise, a)
            with autocast(self.precision, self.rank.device):
                epsilon = predict(noised, timestep.expand(len(images))).double()
            found = (noised - (1 - a[0]).sqrt() * epsilon) / a[0].sqrt()
            noised_images.append(as_pixels(noised))
            found_images.append(as_pixels(found))
        return torch.stack(noised_images, 1).cpu().numpy(), torch.stack(found_images, 1).cpu().numpy()

    @torch.no_grad()
    def encode(self, model: nn.Module, images: Tensor, labels: Tensor, settings: SampleConfig) -> Tensor:
        """(N, 3, H, W) float32 noise, on the CPU, from which deterministic sampling makes about these uint8 images."""
        with autocast(self.precision, self.rank.device):
            noise = diffusion.encode(
                self.predictor(model, labels, settings),
                self.layout(images.float() / 127.5 - 1),
                self.alpha_bars,
                steps=settings.steps,
            )
        return noise.cpu()

    @torch.no_grad()
    def noise_power(self, model: nn.Module, images: Tensor, labels: Tensor, settings: SampleConfig) -> dict[int, float]:
        """For the analytic variance, from the first uint8 images of the training split; the same on all ranks."""
        images, labels = images[:NOISE_POWER_IMAGES], labels[:NOISE_POWER_IMAGES]
        with autocast(self.precision, self.rank.device):
            return diffusion.noise_power(
                self.predictor(model, labels, settings),
                self.layout(images.float() / 127.5 - 1),
                self.layout(diffusion.image_noise(range(len(images)), self.shape, name="noise power")),
                self.alpha_bars,
                steps=settings.steps,
            )

    @torch.no_grad()
    def denoising_error(self, model: nn.Module, images: NDArray[np.uint8], labels: Tensor) -> NDArray[np.float64]:
        """(N,) squared error of the prediction in given images, mean over 16 timesteps; lower is likelier."""
        clean = self.layout(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
        total = torch.zeros(len(images), dtype=torch.float64, device=self.rank.device)
        timesteps = torch.linspace(0, self.task.timesteps - 1, 18).round().long()[1:-1]
        for number, timestep in enumerate(timesteps):
            noise = diffusion.image_noise([number] * len(images), self.shape, name="denoising error")
            with autocast(self.precision, self.rank.device):
                total += diffusion.denoising_loss(
                    model,
                    clean,
                    labels=labels.to(self.rank.device),
                    timesteps=timestep.expand(len(images)).to(self.rank.device),
                    noise=self.layout(noise),
                    alpha_bars=self.alpha_bars,
                    prediction=self.task.prediction,
                    sigma_data=self.task.sigma_data,
                )
        return (total / len(timesteps)).cpu().numpy()

    def layout(self, images: Tensor) -> Tensor:
        """The images on the device in the memory format of the run."""
        last = self.config.train.channels_last
        return images.to(self.rank.device).contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )

    def attributes(self, settings: SampleConfig, weights: str) -> dict[str, Any]:
        """How images were made, for the archive."""
        attributes: dict[str, Any] = {
            "sampler": settings.sampler,
            "steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "weights": weights,
        }
        if settings.guidance_interval:
            attributes["guidance_interval"] = list(settings.guidance_interval)
        if settings.sampler == "ddim":
            attributes["eta"] = settings.eta
        if settings.sampler == "ddpm":
            attributes["variance"] = settings.variance
        return attributes


def as_pixels(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 of (N, 3, H, W) images in [-1, 1]; what is outside is cut off."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def balanced_labels(count: int, classes: int) -> Tensor:
    """(count,) int64: every class equally often, or as many different ones as there is room for."""
    numbers = torch.arange(count)
    return numbers * classes // count if count < classes else numbers % classes
