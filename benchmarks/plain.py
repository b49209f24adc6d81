"""The training loop that most people write, in a process of its own: what train_step.py compares with.

Of hpcvision it takes the model, the data and the learning rates. It never sees what our loop sets for its process.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch
from PIL import Image
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import InterpolationMode, v2

from hpcvision import data
from hpcvision.config import RunConfig
from hpcvision.models import build_model
from hpcvision.training.optim import learning_rate

WORKERS = 2
PREFETCHED = 2 * WORKERS  # the DataLoader's default: two batches for every worker


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory, handed out one by one as torchvision.datasets.CIFAR100 does."""

    def __init__(self, config: RunConfig) -> None:
        shape = {"image_size": config.model.image_size, "num_classes": config.model.num_classes}
        split, chosen = data.load(config.data, "train", **shape), config.data.augmentation
        self.images, self.labels = split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(config.model.image_size, padding=chosen.crop_padding, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
                v2.RandomRotation(chosen.rotation_degrees, interpolation=InterpolationMode.BILINEAR),
                v2.ColorJitter(chosen.brightness, chosen.contrast, chosen.saturation, chosen.hue),
                v2.RandomApply([v2.GaussianBlur(3, chosen.blur_sigma)], p=chosen.blur_probability),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(*data.statistics(config.data, **shape)),
                v2.RandomErasing(p=chosen.erasing_probability, scale=chosen.erasing_area),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class PlainLoop:
    """A loop over a DataLoader."""

    def __init__(self, config: RunConfig, steps: int) -> None:
        optim, size, self.steps = config.optim, config.train.global_batch_size, steps
        self.model = build_model(config.model, seed=config.seed)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2]},
        ]
        self.optimizer = torch.optim.SGD(groups, optim.learning_rate, optim.momentum, nesterov=optim.nesterov)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate(optim, step, config.train.steps) / optim.learning_rate
        )
        averaging = get_ema_multi_avg_fn(config.ema.beta)
        self.average = AveragedModel(self.model, multi_avg_fn=averaging, use_buffers=True)
        dataset = Pictures(config)
        # Shuffled; one pass is one turn.
        sampler = RandomSampler(dataset, num_samples=(PREFETCHED + steps + PREFETCHED) * size)
        self.loader = DataLoader(dataset, size, sampler=sampler, num_workers=WORKERS, persistent_workers=True)
        self.total_loss, self.correct = 0.0, 0

    def turn(self) -> float:
        """Seconds of the timed steps, which lie in the middle of a pass; train_step.py says why."""
        self.model.train()
        for number, (images, labels) in enumerate(self.loader, 1):
            if number <= PREFETCHED + self.steps:
                self.step(images, labels)
            if number == PREFETCHED:
                started = time.perf_counter()
            if number == PREFETCHED + self.steps:
                seconds = time.perf_counter() - started
        return seconds

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Train on one batch."""
        self.optimizer.zero_grad()
        logits = self.model(images)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        self.total_loss += loss.item() * len(labels)
        self.correct += (logits.argmax(1) == labels).sum().item()


class Remote:
    """The loop in the other process, as this one sees it."""

    def __init__(self, process: ProcessPoolExecutor) -> None:
        self.process = process

    def turn(self) -> float:
        """Seconds of the timed steps, measured there."""
        return self.process.submit(_turn).result()

    def weights(self) -> dict[str, torch.Tensor]:
        """Its weights now."""
        arrays = self.process.submit(_weights).result()
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Its logits, without dropout and with the running statistics of BatchNorm."""
        return torch.from_numpy(self.process.submit(_logits, images.numpy()).result())


@contextmanager
def in_a_process(config: RunConfig, steps: int, threads: int) -> Iterator[Remote]:
    """Starts the process; the first call waits until the loop is there."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_build, initargs=(config, steps, threads)) as process:
        yield Remote(process)


_loop: list[PlainLoop] = []  # the one loop of the other process


def _build(config: RunConfig, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    _loop.append(PlainLoop(config, steps))


def _turn() -> float:
    return _loop[0].turn()


def _weights() -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in _loop[0].model.state_dict().items()}


@torch.no_grad()
def _logits(images: Any) -> Any:
    return _loop[0].model.eval()(torch.from_numpy(images)).numpy()
