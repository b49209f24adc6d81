"""Our DDIM sampler against denoising-diffusion-pytorch's and diffusers': `python benchmarks/sampling.py`.

All draw the same number of images on the CPU in fp32, with labels, from one denoiser that was trained for a moment on
the job `cifar100_ddpm_small`: DDIM with eta 0, the clean image clipped and the noise found anew from it, and as many
evaluations of the network, which is counted. Ours is `hpcvision.training.generation.Generator`, as at the end of a run;
`lucidrains` is `GaussianDiffusion.ddim_sample` of denoising-diffusion-pytorch; diffusers is a loop over its
`DDIMScheduler`. All end with uint8 images and run in this process with the same threads, in turns. Where there is a
choice the peers get the better of it: they draw in batches of the same size, which ours has chosen for the cache,
diffusers is given its noise, and the progress bars are off.

diffusers gets our noise and our timesteps and must give the same images, up to the rounding to grey levels. Its
scheduler takes it that timesteps are `timesteps // steps` apart, which ours, from the last to 0, are not; before every
step it is told how far the next one is. lucidrains' timesteps and noise cannot be given to it: it visits others (the
last is not 0), so its images are no copies of ours. They must be those that diffusers makes at these timesteps of the
noise that its seeds give. What is outside the network is the time of a turn less that of the network in it. The peers
are no dependencies: without them the benchmark is skipped.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import diffusion_peers  # before the peers: it skips without them
import measuring
import numpy as np
import torch
from denoising_diffusion_pytorch import GaussianDiffusion
from diffusers import DDIMScheduler
from torch import Tensor, nn

from hpcvision import distributed
from hpcvision.config import RunConfig, apply
from hpcvision.diffusion import image_noise
from hpcvision.diffusion.samplers import sampling_timesteps
from hpcvision.distributed import Rank
from hpcvision.models.counting import parameters_of
from hpcvision.training import state as states
from hpcvision.training.generation import BATCH, Generator, as_pixels, balanced_labels
from hpcvision.training.step import Step
from hpcvision.training.tasks import Diffuse

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
LARGEST_DIFFERENCE = 1  # grey levels: fp32 and fp64 tables round to different sides


class Counted(nn.Module):
    """The denoiser; counts the images that it looked at and the seconds that it took."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.images, self.seconds = model, 0, 0.0

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """Predicted noise."""
        started = time.perf_counter()
        noise = self.model(images, timesteps, labels)
        self.seconds += time.perf_counter() - started
        self.images += len(images)
        return noise


class Lucidrains:
    """The sampler of denoising-diffusion-pytorch."""

    def __init__(self, config: RunConfig, model: nn.Module, labels: Tensor, steps: int, batch: int) -> None:
        self.labels, self.shape = labels.split(batch), shape_of(config)
        self.wrapped = diffusion_peers.ForLucidrains(model)
        self.diffusion = GaussianDiffusion(
            self.wrapped,
            image_size=config.model.image_size,
            timesteps=config.task.timesteps,
            sampling_timesteps=steps,
            objective="pred_noise",
            beta_schedule=config.task.noise_schedule,
        )

    def __call__(self) -> Pixels:
        """The images."""
        images = []
        for seed, labels in enumerate(self.labels):
            torch.manual_seed(seed)  # from which its noise follows
            self.wrapped.labels = labels
            images.append(self.diffusion.ddim_sample((len(labels), *self.shape)))
        return as_pixels(torch.cat(images) * 2 - 1).numpy()

    def noise(self) -> Tensor:
        """What it begins with."""
        streams = [torch.Generator().manual_seed(seed) for seed in range(len(self.labels))]
        pairs = zip(self.labels, streams, strict=True)
        return torch.cat([torch.randn(len(labels), *self.shape, generator=stream) for labels, stream in pairs])

    def timesteps(self) -> list[int]:
        """Which it visits; the step behind the last one is -1, the finished image."""
        total, steps = self.diffusion.num_timesteps, self.diffusion.sampling_timesteps
        return torch.linspace(-1, total - 1, steps + 1).int().flip(0).tolist()[:-1]


class Diffusers:
    """A loop over the scheduler of diffusers."""

    def __init__(
        self, config: RunConfig, model: nn.Module, labels: Tensor, steps: Sequence[int], batch: int, noise: Tensor
    ) -> None:
        self.model, self.labels, self.noise = model, labels.split(batch), noise.split(batch)
        self.timesteps = torch.tensor(steps)
        self.gaps = [step - following for step, following in pairwise([*steps, -1])]
        self.scheduler = DDIMScheduler(config.task.timesteps, beta_schedule=config.task.noise_schedule)

    @torch.no_grad()
    def __call__(self) -> Pixels:
        """The images."""
        found, total = [], self.scheduler.config.num_train_timesteps
        for images, labels in zip(self.noise, self.labels, strict=True):
            for timestep, gap in zip(self.timesteps, self.gaps, strict=True):
                self.scheduler.num_inference_steps = Fraction(total, gap)  # it goes on by total // this
                noise = self.model(images, timestep.expand(len(images)), labels)
                images = self.scheduler.step(noise, timestep, images, use_clipped_model_output=True).prev_sample
            found.append(images)
        return as_pixels(torch.cat(found)).numpy()


def shape_of(config: RunConfig) -> tuple[int, int, int]:
    """Of an image."""
    return 3, config.model.image_size, config.model.image_size


def apart(one: Pixels, other: Pixels) -> int:
    """Grey levels by which the images differ at most."""
    return int(np.abs(one.astype(np.int16) - other).max())


def trained(config: RunConfig, rank: Rank) -> nn.Module:
    """The model after all steps of the configuration."""
    state = states.fresh(config, rank, len(Diffuse.metric_names), "fp32")
    step = Step(config, state, Diffuse(config, rank, "fp32"), rank)
    while state.step < config.train.steps:
        step()
    return state.model.eval()


def measure(config: RunConfig, rank: Rank, count: int, rounds: int, batch: int) -> dict[str, Any]:
    """Time all in turns; gives what `measuring.report` takes."""
    network, generator, settings = Counted(trained(config, rank)), Generator(config, rank, "fp32"), config.sample
    labels, seeds, steps = balanced_labels(count, config.model.num_classes), range(count), settings.steps
    noise = generator.layout(image_noise(seeds, shape_of(config)))
    lucidrains = Lucidrains(config, network, labels, steps, batch)
    cases: dict[str, Callable[[], Pixels]] = {
        "ours": lambda: generator.sample(network, seeds, labels, settings),
        "lucidrains": lucidrains,
        "diffusers": Diffusers(config, network, labels, sampling_timesteps(config.task.timesteps, steps), batch, noise),
    }
    found = {name: draw() for name, draw in cases.items()}
    copied = Diffusers(config, network, labels, lucidrains.timesteps(), batch, lucidrains.noise())()
    differences = {
        "diffusers_to_ours": apart(found["diffusers"], found["ours"]),
        "diffusers_to_lucidrains_at_its_timesteps": apart(copied, found["lucidrains"]),
    }
    assert max(differences.values()) <= LARGEST_DIFFERENCE, f"the images differ: {differences}"

    seconds: dict[str, list[float]] = {name: [] for name in cases}
    outside: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, draw in cases.items():
            network.images, network.seconds, started = 0, 0.0, time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - started)
            outside[name].append(seconds[name][-1] - network.seconds)
            assert network.images == steps * count, f"{name} evaluated the network {network.images} times"
    rows = [
        {
            "case": name,
            "seconds": median(values),
            "fastest": min(values),
            "slowest": max(values),
            "images_per_second": count / median(values),
            "percent_outside_the_network": 100 * measuring.ratio(outside[name], values),
            "darkest_to_lightest": f"{found[name].min()} to {found[name].max()}",
        }
        for name, values in seconds.items()
    ]
    ratios = {f"ratio_{peer}": measuring.ratio(seconds[peer], seconds["ours"]) for peer in ("lucidrains", "diffusers")}
    grey = {"largest_differences_in_grey_levels": differences, "share_of_saturated_values": saturated(found["ours"])}
    return {"rows": rows, "ratios": ratios, **grey, "seconds": seconds, "seconds_outside_the_network": outside}


def saturated(images: Pixels) -> float:
    """The share of values that clipping holds, which hide differences."""
    return float(np.isin(images, (0, 255)).mean())


def main() -> None:
    parser = measuring.parser(__doc__.partition("\n")[0])
    diffusion_peers.add_arguments(parser, rounds=8, images="images of a training step")
    parser.add_argument("--training-steps", type=int, default=100, help="before the images are drawn")
    parser.add_argument("--images", type=int, default=256, help="drawn in a turn")
    parser.add_argument("--steps", type=int, default=50, help="evaluations of the network for each image")
    parser.add_argument("--peer-batch", type=int, default=BATCH["cpu"], help="images that a peer draws at once")
    arguments = parser.parse_args()
    drawing = {"sample.sampler": "ddim", "sample.eta": 0.0, "sample.steps": arguments.steps}
    training = {"train.steps": arguments.training_steps, "optim.learning_rate": 2e-3}
    with tempfile.TemporaryDirectory() as name:
        config, rank = diffusion_peers.set_up(arguments, Path(name))
        config = apply(config, training | drawing)
        measured = measure(config, rank, arguments.images, arguments.rounds, arguments.peer_batch)
        distributed.stop()
    title = (
        f"{arguments.images} images in {arguments.steps} steps of DDIM, {arguments.model} of width {arguments.width}"
    )
    settings = vars(arguments) | {"parameters": parameters_of(config.model), "source": config.data.source}
    file, peers = settings.pop("json"), diffusion_peers.VERSIONS
    measuring.report(title, json_file=file, **measured, **settings, peers=peers)
    for pair, levels in measured["largest_differences_in_grey_levels"].items():
        print(f"{pair} at most {levels} grey levels apart")
    print(f"values that clipping holds: {measured['share_of_saturated_values']:.1%}")
    print("not aligned: lucidrains draws its own noise and visits other timesteps than ours, as many")


if __name__ == "__main__":
    main()
