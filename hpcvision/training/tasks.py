"""What differs between the tasks: their loss, their evaluation, and what they leave in the archive.

Every random number is drawn for the global batch from a named stream and sliced per rank, so that step k is the same
on any number of processes and after any resume.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hpcvision import data, diffusion
from hpcvision.config import ClassifyConfig, DiffuseConfig, RunConfig, SampleConfig
from hpcvision.config.run import Precision
from hpcvision.data.augment import normalise
from hpcvision.distributed import Rank
from hpcvision.metrics import accuracy
from hpcvision.results.record import Interpolations, Samples
from hpcvision.seeding import generator
from hpcvision.training.batches import Batches
from hpcvision.training.precision import autocast

EVALUATION_BATCH = 500


@dataclass
class Evaluation:
    """Scores of one split, and for classifiers what was predicted for each of its images."""

    scores: dict[str, float]
    labels: torch.Tensor | None = None
    predictions: torch.Tensor | None = None


@dataclass
class Artefacts:
    """What a finished run adds to its archive."""

    scores: dict[str, float] = field(default_factory=dict)
    confusion: np.ndarray[Any, np.dtype[np.int64]] | None = None
    samples: dict[str, Samples] = field(default_factory=dict)
    interpolations: dict[str, Interpolations] = field(default_factory=dict)


class Task(Protocol):
    """A task as the training loop sees it."""

    metric_names: tuple[str, ...]
    """Names of the training curves."""
    batches: Batches
    """The images of the run."""

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        """All numbers by which this step differs from others, for this rank, on the CPU; same shapes at every step."""

    def loss(self, model: nn.Module, drawn: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss over this rank's share of the batch, and the sums over it: (1 + metrics,) float64, count last.

        drawn: of `draw`, on the device. Nothing in it makes the host wait for the device.
        """

    def evaluate(self, model: nn.Module, split: data.SplitName) -> Evaluation:
        """Scores on a whole split, every image exactly once; the same on all ranks; call it on every rank."""

    def inputs(self, step: int, count: int) -> torch.Tensor:
        """(count, 3, H, W) in [0, 1]: what the network is shown at `step`, as a picture for people."""

    def finish(self, model: nn.Module, evaluation: Evaluation) -> Artefacts:
        """What goes into the archive of a finished run; call it on every rank."""


class Classify:
    """Cross-entropy on class labels."""

    metric_names: tuple[str, ...] = ("accuracy",)

    def __init__(self, config: RunConfig, rank: Rank, precision: Precision) -> None:
        assert isinstance(config.task, ClassifyConfig), "chosen by task.kind"
        self.config = config
        self.rank = rank
        self.precision = precision
        self.smoothing = config.task.label_smoothing
        self.batches = Batches(config, rank)
        self.inputs, self.draw = self.batches.inputs, self.batches.draw

    def loss(self, model: nn.Module, drawn: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy with label smoothing; sums: loss, correct, count."""
        images, labels = self.batches.local(drawn)
        with autocast(self.precision, self.rank.device):
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        correct = (logits.detach().argmax(1) == labels).sum()
        count = torch.full((), len(labels), device=labels.device, dtype=torch.float64)
        return loss, torch.stack([loss.detach().double() * len(labels), correct.double(), count])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: data.SplitName) -> Evaluation:
        """loss (without smoothing), accuracy, its deviation over batches and its Wilson interval."""
        images, labels = self.batches.split(split)
        # One more than the predicted class, so that an image that nobody has looked at reads 0.
        seen = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
        loss = torch.zeros((), dtype=torch.float64, device=labels.device)
        mine = torch.arange(len(labels), device=labels.device)[self.rank.index :: self.rank.world_size]
        for chosen in mine.split(EVALUATION_BATCH):
            batch = normalise(images[chosen], mean=self.batches.mean, std=self.batches.std)
            with autocast(self.precision, self.rank.device):
                logits = model(self.batches.layout(batch)).float()
            loss += functional.cross_entropy(logits.double(), labels[chosen], reduction="sum")
            seen[chosen] += logits.argmax(1) + 1
        self.rank.sum(seen)
        self.rank.sum(loss)
        once = (seen >= 1) & (seen <= self.config.model.num_classes)
        assert bool(once.all()), "each image is looked at exactly once"
        predictions = (seen - 1).cpu()
        correct = predictions == labels.cpu()
        low, high = accuracy.wilson_interval(int(correct.sum()), len(correct))
        scores = {
            "loss": float(loss) / len(labels),
            "accuracy": float(correct.double().mean()),
            "accuracy_batch_deviation": accuracy.batch_deviation(correct, self.config.train.global_batch_size),
            "accuracy_low": low,
            "accuracy_high": high,
        }
        return Evaluation(scores, labels.cpu(), predictions)

    def finish(self, model: nn.Module, evaluation: Evaluation) -> Artefacts:
        """The confusion matrix of the given evaluation."""
        del model
        assert evaluation.labels is not None, "made by evaluate()"
        assert evaluation.predictions is not None, "made by evaluate()"
        matrix = accuracy.confusion_matrix(evaluation.labels, evaluation.predictions, self.config.model.num_classes)
        return Artefacts(scores=evaluation.scores, confusion=matrix.numpy())


class Diffuse:
    """Find the noise in noised images (Ho et al. 2020), with the label left out now and then."""

    metric_names: tuple[str, ...] = ()

    def __init__(self, config: RunConfig, rank: Rank, precision: Precision) -> None:
        assert isinstance(config.task, DiffuseConfig), "chosen by task.kind"
        self.config = config
        self.task = config.task
        self.rank = rank
        self.precision = precision
        self.batches = Batches(config, rank)
        self.inputs = self.batches.inputs
        self.alpha_bars = diffusion.alpha_bar(config.task).to(rank.device)
        self.losses = partial(
            diffusion.denoising_loss,
            alpha_bars=self.alpha_bars,
            prediction=config.task.prediction,
            min_snr_gamma=config.task.min_snr_gamma,
        )

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        """Also the timesteps, the noise, and the numbers that decide whose label is left out."""
        size, rows = self.config.train.global_batch_size, self.batches.rows
        stream = generator(self.config.seed, "noise", step)
        side = self.config.model.image_size
        return self.batches.draw(step) | {
            "timesteps": torch.randint(self.task.timesteps, (size,), generator=stream)[rows],
            "label_uniform": torch.rand(size, generator=stream)[rows],
            "noise": torch.randn(size, 3, side, side, generator=stream)[rows],
        }

    def loss(self, model: nn.Module, drawn: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared error of the prediction; sums: loss, count."""
        images, labels = self.batches.local(drawn)
        labels = diffusion.drop_labels(labels, drawn["label_uniform"], self.task.label_dropout)
        timesteps, noise = drawn["timesteps"], drawn["noise"]
        with autocast(self.precision, self.rank.device):
            losses = self.losses(model, images, labels=labels, timesteps=timesteps, noise=noise)
        sums = torch.stack([losses.detach().double().sum(), losses.new_full((), len(losses), dtype=torch.float64)])
        return losses.mean(), sums

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: data.SplitName) -> Evaluation:
        """loss: error of the prediction, at one fixed timestep and noise per image, the same in every run."""
        images, labels = self.batches.split(split)
        total = torch.zeros(2, dtype=torch.float64, device=self.rank.device)
        chunks = torch.arange(len(labels)).split(EVALUATION_BATCH)
        for number in range(self.rank.index, len(chunks), self.rank.world_size):
            chosen = chunks[number]
            stream = generator(0, "evaluation noise", number)
            timesteps = torch.randint(self.task.timesteps, (len(chosen),), generator=stream).to(self.rank.device)
            noise = torch.randn(len(chosen), *images.shape[1:], generator=stream).to(self.rank.device)
            clean = normalise(images[chosen], mean=self.batches.mean, std=self.batches.std)
            with autocast(self.precision, self.rank.device):
                losses = self.losses(
                    model, self.batches.layout(clean), labels=labels[chosen], timesteps=timesteps, noise=noise
                )
            total += torch.stack([losses.double().sum(), losses.new_full((), len(losses), dtype=torch.float64)])
        self.rank.sum(total)
        assert int(total[1]) == len(labels), "each image exactly once"
        return Evaluation({"loss": float(total[0] / total[1])})

    def finish(self, model: nn.Module, evaluation: Evaluation) -> Artefacts:
        """Random samples, never selected, and spherical interpolations between pairs of classes."""
        settings, classes = self.config.sample, self.config.model.num_classes
        artefacts = Artefacts(scores=evaluation.scores)
        shape = (3, self.config.model.image_size, self.config.model.image_size)
        if settings.images:
            seeds = torch.arange(settings.images)
            labels = seeds * classes // settings.images if settings.images < classes else seeds % classes
            images = self.sample(model, diffusion.image_noise(seeds.tolist(), shape), labels, seeds.tolist(), settings)
            artefacts.samples["random"] = Samples(images, labels.numpy(), seeds.numpy(), self.attributes(settings))
        if settings.interpolation_pairs:
            pairs, points = settings.interpolation_pairs, settings.interpolation_points
            ends = torch.randint(classes, (pairs, 2), generator=generator(self.config.seed, "pairs"))
            fractions = torch.linspace(0, 1, points)
            noise = diffusion.image_noise(range(2 * pairs), shape)
            ways = torch.stack([diffusion.slerp(noise[2 * i], noise[2 * i + 1], fractions) for i in range(pairs)])
            # The noise goes over smoothly; the label changes half way.
            labels = torch.where(fractions[None, :] < 0.5, ends[:, :1], ends[:, 1:])
            # Added noise would break the way between two images, so interpolation is always deterministic.
            if settings.sampler in ("ddim", "ddpm"):
                settings = settings.model_copy(update={"sampler": "ddim", "eta": 0.0})
            flat = self.sample(model, ways.flatten(0, 1), labels.flatten(), [0] * labels.numel(), settings)
            images = flat.reshape(pairs, points, *flat.shape[1:])
            attributes = self.attributes(settings) | {"method": "slerp"}
            artefacts.interpolations["slerp"] = Interpolations(images, ends.numpy(), attributes)
        return artefacts

    def attributes(self, settings: SampleConfig) -> dict[str, Any]:
        """How images were made, for the archive."""
        attributes: dict[str, Any] = {
            "sampler": settings.sampler,
            "steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "weights": self.config.ema.headline,
        }
        if settings.sampler == "ddim":
            attributes["eta"] = settings.eta
        if settings.sampler == "ddpm":
            attributes["variance"] = settings.variance
        return attributes

    @torch.no_grad()
    def sample(
        self, model: nn.Module, noise: torch.Tensor, labels: torch.Tensor, seeds: list[int], settings: SampleConfig
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(N, H, W, 3) uint8 images of the given noise and labels, shared out over the ranks; the same on all."""
        device = self.rank.device
        count, channels, height, width = noise.shape
        images = torch.zeros(count, height, width, channels, dtype=torch.int32, device=device)
        mine = torch.arange(count)[self.rank.index :: self.rank.world_size]
        for chosen in mine.split(EVALUATION_BATCH):
            with autocast(self.precision, device):
                step_seeds = [seeds[i] for i in chosen.tolist()]
                drawn = diffusion.sampler_of(settings)(
                    diffusion.as_noise(
                        diffusion.guided(model, labels[chosen].to(device), settings.guidance_scale),
                        self.alpha_bars,
                        self.task.prediction,
                    ),
                    self.batches.layout(noise[chosen].to(device)),
                    self.alpha_bars,
                    steps=settings.steps,
                    step_noise=diffusion.image_step_noise(step_seeds, noise.shape[1:], device=device),
                )
            pixels = ((drawn.float() + 1) * 127.5).round().clamp(0, 255).to(torch.int32)
            images[chosen] = pixels.permute(0, 2, 3, 1)
        return self.rank.sum(images).to(torch.uint8).cpu().numpy()


TASKS: dict[str, type[Classify] | type[Diffuse]] = {"classify": Classify, "diffuse": Diffuse}
