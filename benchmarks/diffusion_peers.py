"""denoising-diffusion-pytorch and diffusers, training the denoiser of a job: what diffusion_step.py compares with.

They are no dependencies: a benchmark that needs this module is skipped without them.
"""

import argparse
import contextlib
import io
import itertools
import time
from collections import deque
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing import cpu_count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from hpcvision import data, distributed
from hpcvision.config import RunConfig, apply
from hpcvision.config.catalogue import load_job
from hpcvision.distributed import Place, Rank
from hpcvision.models import build_model
from hpcvision.training.optim import build_optimizer
from hpcvision.training.precision import set_arithmetic

try:
    from accelerate import Accelerator
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, denoising_diffusion_pytorch
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm
except ImportError as error:
    print(f"skipped, because {error.name} is missing: pip install denoising-diffusion-pytorch diffusers accelerate")
    raise SystemExit(0) from None

Batch = tuple[Tensor, Tensor]
VERSIONS = {name: version(name) for name in ("denoising-diffusion-pytorch", "ema-pytorch", "diffusers", "accelerate")}
# Untimed steps of a turn. The first step after the workers of another case were forked has 2,600 page faults for memory
# that was shared with them, and takes 218 ms instead of 211 (ours, residual_unet of width 0.4, one thread of a Xeon).
BEFORE = 1
PREFETCHED = 2 * cpu_count()  # batches: the DataLoader's default, two for every worker
CHANGES = {
    "train.precision": "fp32",
    "task.label_dropout": 0.0,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "optim.learning_rate": 2**-12,  # float32 holds it exactly: ours is a tensor, the peers' a number
    "optim.gradient_clip": 1.0,
    "ema.beta": 0.995,
}


# The Trainer has no option that turns its progress bar off.
denoising_diffusion_pytorch.tqdm = lambda *arguments, **options: tqdm(*arguments, **options | {"disable": True})


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int, images: str) -> None:
    """What to choose in both benchmarks."""
    models = ["convnext_unet", "residual_unet", "edm_unet"]
    parser.add_argument("--model", default=models[0], choices=models, help="denoiser")
    parser.add_argument("--width", type=float, default=0.25, help="factor on its channels")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of every case")
    parser.add_argument("--batch", type=int, default=64, help=images)
    parser.add_argument("--threads", type=int, default=2, help="of this process, for all cases")


def set_up(arguments: argparse.Namespace, folder: Path) -> tuple[RunConfig, Rank]:
    """The job with the chosen model, on CIFAR-100 where $HPCVISION_DATA holds it, else on synthetic images."""
    cifar = data.status("cifar100")
    source = "cifar100" if cifar["prepared"] or not cifar["missing"] else "synthetic"
    chosen = {"data.source": source, "model.kind": arguments.model, "model.width": arguments.width}
    config = apply(load_job("cifar100_ddpm_small"), CHANGES | chosen | {"train.global_batch_size": arguments.batch})
    rank = distributed.start(Place(), folder)
    if rank.device.type != "cpu":
        raise SystemExit("this benchmark compares on the CPU; hide the GPUs with CUDA_VISIBLE_DEVICES=''")
    set_arithmetic(config.train, rank)
    torch.set_num_threads(arguments.threads)
    return config, rank


def first_model(config: RunConfig, *, channels_last: bool) -> nn.Module:
    """The model with the weights that ours begins with."""
    model = build_model(config.model, seed=config.seed)
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class ForLucidrains(nn.Module):
    """A denoiser as denoising-diffusion-pytorch calls it; that knows no labels, so they are put here beforehand."""

    channels = out_dim = 3
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.labels: Tensor | None = None

    def forward(self, images: Tensor, timesteps: Tensor, _: None) -> Tensor:
        """Predicted noise."""
        return self.model(images, timesteps, self.labels)


class FedDiffusion(GaussianDiffusion):
    """Its diffusion; takes noise and timesteps from `fed` as long as there are some, and notes its losses."""

    def __init__(self, model: ForLucidrains, **options: Any) -> None:
        super().__init__(model, **options)
        self.fed: deque[dict[str, Tensor]] = deque()
        self.noted: list[Tensor] = []

    def p_losses(self, images: Tensor, timesteps: Tensor, noise: Tensor | None = None, **options: Any) -> Tensor:
        """Mean loss."""
        if self.fed:
            drawn = self.fed.popleft()
            timesteps, noise = drawn["timesteps"], drawn["noise"]
        loss = super().p_losses(images, timesteps, noise, **options)
        self.noted.append(loss.detach())
        return loss


class Lucidrains:
    """The Trainer of denoising-diffusion-pytorch; out of the box a turn is an epoch over all images of the folder."""

    def __init__(self, config: RunConfig, folder: Path, steps: int, batches: list[Batch] | None) -> None:
        optim, self.steps = config.optim, steps
        self.before, self.after = (BEFORE, 0) if batches else (PREFETCHED, PREFETCHED)
        self.model = first_model(config, channels_last=batches is not None and config.train.channels_last)
        self.diffusion = FedDiffusion(
            ForLucidrains(self.model),
            image_size=config.model.image_size,
            timesteps=config.task.timesteps,
            objective="pred_noise",
            beta_schedule=config.task.noise_schedule,
            auto_normalize=not batches,
        )
        self.fed, self.noted = self.diffusion.fed, self.diffusion.noted
        self.trainer = Trainer(
            self.diffusion,
            folder,
            train_batch_size=config.train.global_batch_size,
            augment_horizontal_flip=config.data.augmentation.flip,
            train_lr=optim.learning_rate,
            adam_betas=optim.betas,
            max_grad_norm=optim.gradient_clip,
            ema_decay=config.ema.beta,
            results_folder=folder / "results",
            save_and_sample_every=10**9,
            calculate_fid=False,
        )
        if batches:
            optimizer = build_optimizer(optim, self.model, optim.learning_rate)
            self.trainer.opt = self.trainer.accelerator.prepare(optimizer)
            self.trainer.dl = self.images_of(batches)

    def images_of(self, batches: list[Batch]) -> Iterator[Tensor]:
        """The images of the batches, again and again, with the labels where the model looks for them."""
        for images, labels in itertools.cycle(batches):
            self.diffusion.model.labels = labels
            yield images

    def train(self, steps: int) -> None:
        """So many steps."""
        self.trainer.train_num_steps = self.trainer.step + steps
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it is complete
            self.trainer.train()

    def turn(self) -> float:
        """Seconds of the timed steps of a turn."""
        self.train(self.before)
        started = time.perf_counter()
        self.train(self.steps)
        seconds = time.perf_counter() - started
        for _ in range(self.after):
            next(self.trainer.dl)
        return seconds


class Pictures(Dataset[Batch]):
    """Images in memory, varied one by one with the transforms of diffusers' example."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels, size = images.permute(0, 2, 3, 1).contiguous().numpy(), labels, images.shape[-1]
        self.transform = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.CenterCrop(size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Diffusers:
    """A loop over the parts of diffusers and accelerate; out of the box a turn is an epoch over the pictures."""

    def __init__(self, config: RunConfig, pictures: Pictures, steps: int, batches: list[Batch] | None) -> None:
        optim, self.steps = config.optim, steps
        self.before, self.after = (BEFORE, 0) if batches else (PREFETCHED, PREFETCHED)
        self.model = first_model(config, channels_last=batches is not None and config.train.channels_last)
        self.clip = optim.gradient_clip
        self.accelerator = Accelerator(mixed_precision="no")
        self.schedule = DDPMScheduler(config.task.timesteps, beta_schedule=config.task.noise_schedule)
        if batches:
            optimizer = build_optimizer(optim, self.model, optim.learning_rate)
            self.loader: Any = batches
        else:
            settings = {"lr": optim.learning_rate, "betas": optim.betas, "weight_decay": 0.0}
            optimizer = torch.optim.AdamW(self.model.parameters(), **settings)
            size = config.train.global_batch_size
            loader = DataLoader(pictures, size, shuffle=True, num_workers=cpu_count())
            self.loader = self.accelerator.prepare(loader)
        prepared = self.accelerator.prepare(self.model, optimizer, get_scheduler("constant", optimizer))
        self.prepared, self.optimizer, self.rates = prepared
        self.average = EMAModel(self.model.parameters(), decay=config.ema.beta, use_ema_warmup=True)
        self.fed, self.noted = deque[dict[str, Tensor]](), list[Tensor]()

    def train(self, images: Tensor, labels: Tensor) -> None:
        """One step."""
        noise = torch.randn(images.shape)
        timesteps = torch.randint(self.schedule.config.num_train_timesteps, (len(images),))
        if self.fed:
            drawn = self.fed.popleft()
            timesteps, noise = drawn["timesteps"], drawn["noise"]
        noised = self.schedule.add_noise(images, noise, timesteps)
        with self.accelerator.accumulate(self.prepared):
            loss = functional.mse_loss(self.prepared(noised, timesteps, labels), noise)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.clip)
            self.optimizer.step()
            self.rates.step()
            self.optimizer.zero_grad()
        self.average.step(self.prepared.parameters())
        self.noted.append(loss.detach())
        loss.item()  # the example shows it at every step

    def turn(self) -> float:
        """Seconds of the timed steps of a turn."""
        started, seconds = time.perf_counter(), 0.0
        for number, batch in enumerate(self.loader, 1):
            if number <= self.before + self.steps:
                self.train(*batch)
            if number == self.before:
                started = time.perf_counter()
            if number == self.before + self.steps:
                seconds = time.perf_counter() - started
        return seconds
