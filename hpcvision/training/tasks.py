"""What differs between the tasks: their loss, their evaluation, and what they leave in the archive.

Every random number is drawn for the global batch from a named stream and sliced per rank, so that step k is the same
on any number of processes and after any resume.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from hpcvision import data, diffusion
from hpcvision.config import ClassifyConfig, DiffuseConfig, RunConfig
from hpcvision.config.run import Precision, Weights
from hpcvision.data.augment import normalise
from hpcvision.data.cutmix import UNIFORMS_PER_IMAGE, cutmix, rectangles
from hpcvision.distributed import Rank
from hpcvision.metrics import accuracy
from hpcvision.seeding import generator
from hpcvision.stopping import StopRequest
from hpcvision.training import scoring
from hpcvision.training.artefacts import Artefacts, Gallery
from hpcvision.training.batches import Batches
from hpcvision.training.generation import Generator, Progress
from hpcvision.training.precision import autocast

EVALUATION_BATCH = 500


@dataclass
class Evaluation:
    """Scores of one split, and for classifiers what was predicted for each of its images."""

    scores: dict[str, float]
    labels: torch.Tensor | None = None
    predictions: torch.Tensor | None = None


class Task(Protocol):
    """A task as the training loop sees it."""

    metric_names: tuple[str, ...]
    """Names of the training curves."""
    batches: Batches
    """The images of the run."""
    images_to_draw: float
    """By all calls of `pictures` together."""

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

    def pictures(self, current: Callable[[], nn.Module], weights: Weights, progress: Progress) -> Artefacts:
        """What a finished run's archive gets that this set of weights draws, if it does; call it on every rank."""

    def confusion(self, evaluation: Evaluation) -> NDArray[np.int64] | None:
        """(classes, classes): row = true class, column = predicted class; None where nothing is classified."""

    def stop_with(self, stop: StopRequest) -> None:
        """From now on leave `pictures` with DrawingStopped, between two batches of images, when asked to stop."""

    def preview(self, current: Callable[[], nn.Module]) -> NDArray[np.uint8] | None:
        """(N, H, W, 3) uint8: what the current model draws, if it draws; call it on every rank."""


class Classify:
    """Cross-entropy on class labels."""

    metric_names: tuple[str, ...] = ("accuracy",)
    images_to_draw: float = 0.0

    def __init__(self, config: RunConfig, rank: Rank, precision: Precision) -> None:
        assert isinstance(config.task, ClassifyConfig), "chosen by task.kind"
        self.config = config
        self.rank = rank
        self.precision = precision
        self.task = config.task
        self.batches = Batches(config, rank)

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        """For CutMix also the rectangles' random numbers, and one image more, of which the last one gets a part."""
        if not self.task.cutmix_probability:
            return self.batches.draw(step)
        size = self.config.train.global_batch_size
        uniform = torch.rand(size, UNIFORMS_PER_IMAGE, generator=generator(self.config.seed, "cutmix", step))
        return self.batches.draw(step, following=1) | {"cutmix": uniform[self.batches.rows]}

    def shown(self, drawn: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images, (b,) classes, of a mixed image the one with the larger part, and what the loss is taken to."""
        images, labels = self.batches.local(drawn)
        if "cutmix" not in drawn:
            return images, labels, labels
        replaced = rectangles(drawn["cutmix"], self.task.cutmix_probability, self.config.model.image_size)
        images, shares = cutmix(images, labels, replaced, self.config.model.num_classes)
        return self.batches.layout(images), shares.argmax(1), shares

    def inputs(self, step: int, count: int) -> torch.Tensor:
        """The first images of a step."""
        images, _, _ = self.shown(self.batches.to_device(self.draw(step)))
        return self.batches.picture(images[:count])

    def loss(self, model: nn.Module, drawn: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy with label smoothing; sums: loss, correct, count.

        Of a mixed image the class with the larger part is the correct one.
        """
        images, labels, targets = self.shown(drawn)
        with autocast(self.precision, self.rank.device):
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=self.task.label_smoothing)
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

    def pictures(self, current: Callable[[], nn.Module], weights: Weights, progress: Progress) -> Artefacts:
        """None."""
        del current, weights, progress
        return Artefacts()

    def confusion(self, evaluation: Evaluation) -> NDArray[np.int64]:
        """Of the images of the evaluation."""
        assert evaluation.labels is not None, "made by evaluate()"
        assert evaluation.predictions is not None, "made by evaluate()"
        matrix = accuracy.confusion_matrix(evaluation.labels, evaluation.predictions, self.config.model.num_classes)
        return matrix.numpy()

    def stop_with(self, stop: StopRequest) -> None:
        """Nothing: a classifier draws no pictures."""

    def preview(self, current: Callable[[], nn.Module]) -> None:
        """Nothing: a classifier draws no pictures."""


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
        self.generator = Generator(config, rank, precision)
        rows = config.sample.interpolation_pairs * config.sample.interpolation_points
        self.images_to_draw = (2 if config.ema.beta else 1) * config.sample.images + 2.0 * rows
        self.losses = partial(
            diffusion.denoising_loss,
            alpha_bars=self.generator.alpha_bars,
            prediction=config.task.prediction,
            sigma_data=config.task.sigma_data,
            min_snr_gamma=config.task.min_snr_gamma,
        )

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        """Also the timesteps, the noise, and the numbers that decide whose label is left out."""
        size, rows = self.config.train.global_batch_size, self.batches.rows
        stream = generator(self.config.seed, "noise", step)
        side = self.config.model.image_size
        return self.batches.draw(step) | {
            "timesteps": diffusion.draw_timesteps(self.task, size, stream)[rows],
            "label_uniform": torch.rand(size, generator=stream)[rows],
            "noise": torch.randn(size, 3, side, side, generator=stream)[rows],
        }

    def inputs(self, step: int, count: int) -> torch.Tensor:
        """The first images of a step, without noise."""
        images, _ = self.batches.local(self.batches.to_device(self.batches.draw(step)))
        return self.batches.picture(images[:count])

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
            timesteps = diffusion.draw_timesteps(self.task, len(chosen), stream).to(self.rank.device)
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

    def pictures(self, current: Callable[[], nn.Module], weights: Weights, progress: Progress) -> Artefacts:
        """Samples of both sets of weights; of the headline's also interpolations and strips."""
        artefacts, settings, model = Artefacts(), self.config.sample, current()
        gallery = Gallery(self.generator, model, weights, self.noise_power(model), progress)
        headline = weights == self.config.ema.headline
        if settings.images:
            samples = gallery.random()
            artefacts.samples["random" if headline else f"random_{weights}"] = samples
            if headline:
                judge, rule = scoring.judge_of(self.config, self.rank.device)
                artefacts.samples["best"] = gallery.best(samples, judge, rule)
        if settings.interpolation_pairs and headline:
            artefacts.interpolations = gallery.interpolations()
            artefacts.strips["denoising"] = gallery.denoising()
        return artefacts

    def confusion(self, evaluation: Evaluation) -> None:
        """None."""

    def noise_power(self, model: nn.Module) -> dict[int, float] | None:
        """For the analytic variance, if the run samples with it."""
        if self.config.sample.variance != "analytic":
            return None
        images, labels = self.batches.split("train")
        return self.generator.noise_power(model, images, labels, self.config.sample)

    def stop_with(self, stop: StopRequest) -> None:
        """Ask it between two batches of images."""
        self.generator.stop_code = lambda: stop.code

    def preview(self, current: Callable[[], nn.Module]) -> NDArray[np.uint8]:
        """Images of the same noise and labels every time."""
        return Gallery(self.generator, current(), self.config.ema.headline, None).preview()


TASKS: dict[str, type[Classify] | type[Diffuse]] = {"classify": Classify, "diffuse": Diffuse}
