"""From noise to images: the reverse process, with any function that predicts the noise."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hpcvision.config.task import SampleConfig, Variance
from hpcvision.diffusion.loss import PredictNoise, add_noise
from hpcvision.diffusion.noise import StepNoise
from hpcvision.errors import UserError

RHO, LARGEST_SIGMA = 7.0, 80.0  # Karras et al. 2022, table 1


class Sampler(Protocol):
    """What every sampler takes: a predictor, (B, C, H, W) noise and (T,) alpha_bars; it gives images in [-1, 1]."""

    def __call__(
        self, predict_noise: PredictNoise, noise: Tensor, alpha_bars: Tensor, *, steps: int, step_noise: StepNoise
    ) -> Tensor: ...


@torch.no_grad()
def ddim(
    predict_noise: PredictNoise,
    noise: Tensor,
    alpha_bars: Tensor,
    *,
    steps: int,
    step_noise: StepNoise | None = None,
    eta: float = 0.0,
) -> Tensor:
    """(B, C, H, W) images in [-1, 1] (Song et al. 2021, eq. 12 and 16).

    noise: (B, C, H, W) float32, standard normal;  alpha_bars: (T,) float64;  steps: evaluations of the predictor;
    step_noise: what to add after each step but the last, asked by the timestep that the step leaves;  eta: 0 for a
    deterministic function of the noise, 1 for ancestral sampling, in between for less added noise.
    """
    path = _Path(predict_noise, alpha_bars, steps)
    x = noise
    for timestep, a, a_next in path.pairs():
        clean, epsilon = path.look(x, timestep)
        variance = eta**2 * _posterior_variance(a, a_next)
        x = math.sqrt(a_next) * clean + math.sqrt(1 - a_next - variance) * epsilon
        if variance:
            assert step_noise is not None, "given whenever eta is"
            x = x + math.sqrt(variance) * step_noise(timestep)
    return path.look(x, path.last)[0]


@torch.no_grad()
def ddpm(
    predict_noise: PredictNoise,
    noise: Tensor,
    alpha_bars: Tensor,
    *,
    steps: int,
    step_noise: StepNoise,
    variance: Variance = "small",
    noise_power: Mapping[int, float] | None = None,
) -> Tensor:
    """(B, C, H, W) images in [-1, 1], ancestral sampling with a fixed variance (Ho et al. 2020, eq. 7 and section 3.2).

    Arguments as for `ddim`. variance: `small` is that of the posterior for a known clean image, beta tilde; `large` is
    beta itself; `analytic` the best one for this model (Bao et al. 2022, theorem 1), which needs the `noise_power` of
    the timesteps. Between respaced timesteps all are those of the longer step.
    """
    path = _Path(predict_noise, alpha_bars, steps)
    x = noise
    for timestep, a, a_next in path.pairs():
        clean, epsilon = path.look(x, timestep)
        small = _posterior_variance(a, a_next)
        added = 1 - a / a_next if variance == "large" else small
        if variance == "analytic":
            assert noise_power is not None, "measured by noise_power()"
            uncertain = math.sqrt((1 - a) * a_next / a) - math.sqrt(1 - a_next - small)
            added += uncertain**2 * max(0.0, 1 - noise_power[timestep])
        mean = math.sqrt(a_next) * clean + math.sqrt(1 - a_next - small) * epsilon
        x = mean + math.sqrt(added) * step_noise(timestep)
    return path.look(x, path.last)[0]


@torch.no_grad()
def heun(
    predict_noise: PredictNoise,
    noise: Tensor,
    alpha_bars: Tensor,
    *,
    steps: int,
    step_noise: StepNoise | None = None,  # noqa: ARG001 (every sampler takes it; this one draws nothing)
) -> Tensor:
    """(B, C, H, W) images in [-1, 1], deterministic, second order (Karras et al. 2022, algorithm 1).

    Arguments as for `ddim`. Each step looks twice, so about steps / 2 of `karras_timesteps` are visited. In the paper's
    variables, x / sqrt(alpha_bar) and sigma = sqrt(1 / alpha_bar - 1), the slope of the way to the image is the noise.
    """
    path = _Path(predict_noise, alpha_bars, (steps + 1) // 2, even=False)
    x = noise
    for timestep, a, a_next in path.pairs():
        sigma, sigma_next = math.sqrt(1 / a - 1), math.sqrt(1 / a_next - 1)
        _, slope = path.look(x, timestep)
        straight = math.sqrt(a_next) * (x / math.sqrt(a) + (sigma_next - sigma) * slope)
        _, slope_there = path.look(straight, path.after[timestep])
        x = math.sqrt(a_next) * (x / math.sqrt(a) + (sigma_next - sigma) * (slope + slope_there) / 2)
    return path.look(x, path.last)[0]


@torch.no_grad()
def dpm_solver_2m(
    predict_noise: PredictNoise,
    noise: Tensor,
    alpha_bars: Tensor,
    *,
    steps: int,
    step_noise: StepNoise | None = None,  # noqa: ARG001 (every sampler takes it; this one draws nothing)
) -> Tensor:
    """(B, C, H, W) images in [-1, 1], deterministic, second order: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    Arguments as for `ddim`. Each step, between `karras_timesteps`, uses the clean image of the step before as well.
    """
    path = _Path(predict_noise, alpha_bars, steps, even=False)
    x, before, h_before = noise, None, 0.0
    for timestep, a, a_next in path.pairs():
        h = _half_log_snr(a_next) - _half_log_snr(a)
        clean, _ = path.look(x, timestep)
        ahead = clean if before is None else clean + (clean - before) * (h / (2 * h_before))
        x = math.sqrt((1 - a_next) / (1 - a)) * x - math.sqrt(a_next) * math.expm1(-h) * ahead
        before, h_before = clean, h
    return path.look(x, path.last)[0]


@torch.no_grad()
def encode(predict_noise: PredictNoise, images: Tensor, alpha_bars: Tensor, *, steps: int) -> Tensor:
    """(B, C, H, W) noise from which `ddim` makes about these images (Song et al. 2021, section 4.3).

    images: (B, C, H, W) float32 in [-1, 1]. The way of `ddim` is gone backwards, with the noise found where a step
    starts instead of where it ends, so it is exact only for many steps.
    """
    path = _Path(predict_noise, alpha_bars, steps)
    upwards = path.timesteps[::-1]
    x = images * math.sqrt(path.table[upwards[0]])
    for timestep, following in itertools.pairwise(upwards):
        a, a_next = path.table[timestep], path.table[following]
        epsilon = path.predict(x, timestep)
        # Not clipped: what clipping takes away, no decoder gives back.
        clean = (x - math.sqrt(1 - a) * epsilon) / math.sqrt(a)
        x = (math.sqrt(a_next) * clean + math.sqrt(1 - a_next) * epsilon).to(images.dtype)
    return x


@torch.no_grad()
def noise_power(
    predict_noise: PredictNoise, images: Tensor, noise: Tensor, alpha_bars: Tensor, *, steps: int
) -> dict[int, float]:
    """timestep of a `ddpm` path -> mean square of the noise that the predictor finds (Bao et al. 2022, eq. 8).

    images, noise: (B, C, H, W) float32; the mean is over them. It is 1 for a predictor that is told the noise, and less
    for any honest one: what is missing is the uncertainty about the clean image.
    """
    path = _Path(predict_noise, alpha_bars, steps)
    return {
        timestep: float(
            path.predict(add_noise(images, noise, alpha_bars[timestep].expand(len(images))), timestep)
            .double()
            .square()
            .mean()
        )
        for timestep in path.timesteps
    }


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {"ddim": ddim, "ddpm": ddpm, "heun": heun, "dpm_solver_2m": dpm_solver_2m}
)


def sampler_of(config: SampleConfig, noise_power: Mapping[int, float] | None = None) -> Sampler:
    """The sampler of these settings, its own settings bound; noise_power: for the analytic variance."""
    match config.sampler:
        case "ddim":
            return partial(ddim, eta=config.eta)
        case "ddpm":
            return partial(ddpm, variance=config.variance, noise_power=noise_power)
        case name:
            return SAMPLERS[name]


def sampling_timesteps(total: int, steps: int) -> list[int]:
    """`steps` timesteps of [0, total), falling from total - 1 to 0, evenly spaced but for rounding.

    Ending at 0 keeps fine detail: 50 DDIM steps of the linear schedule, with the best predictor of Gaussian data of
    standard deviation 0.05, give 65 % of that deviation; stopping one spacing earlier gives 53 %.
    """
    if not 1 <= steps <= total:
        raise UserError(f"sample.steps={steps} must be between 1 and task.timesteps={total}; set one of the two")
    last = total - 1
    return [last - round(last * step / max(steps - 1, 1)) for step in range(steps)]


def karras_timesteps(alpha_bars: Sequence[float], steps: int) -> list[int]:
    """At most `steps` falling timesteps, nearest to the noise levels of Karras et al. 2022 (eq. 5, rho = 7).

    sigma = sqrt(1 / alpha_bar - 1), from 80, or the table's largest where that is less, down to timestep 0. Methods of
    second order need it: evenly spaced timesteps cross decades of sigma in their first step.
    """
    sigmas = np.sqrt(1 / np.asarray(alpha_bars) - 1)  # rising
    ends = min(sigmas[-1], LARGEST_SIGMA) ** (1 / RHO), sigmas[0] ** (1 / RHO)
    wanted = np.linspace(*ends, steps) ** RHO
    nearest = np.abs(np.log(sigmas[None, :] / wanted[:, None])).argmin(1)
    return sorted({int(timestep) for timestep in nearest}, reverse=True)


class _Path:
    """The timesteps that a sampler visits, and what the predictor sees there."""

    def __init__(self, predict_noise: PredictNoise, alpha_bars: Tensor, steps: int, *, even: bool = True) -> None:
        self.predict_noise = predict_noise
        self.table: list[float] = alpha_bars.tolist()  # one transfer from the device instead of two a step
        self.timesteps = sampling_timesteps(len(self.table), steps) if even else karras_timesteps(self.table, steps)
        self.last = self.timesteps[-1]
        self.after = dict(itertools.pairwise(self.timesteps))

    def pairs(self) -> Iterator[tuple[int, float, float]]:
        """(timestep, its alpha_bar, the next one's), without the last timestep, which has no next."""
        for timestep, following in itertools.pairwise(self.timesteps):
            yield timestep, self.table[timestep], self.table[following]

    def predict(self, x: Tensor, timestep: int) -> Tensor:
        """The noise that the predictor finds in x; half precision is made single, float64 stays."""
        epsilon = self.predict_noise(x, torch.full((len(x),), timestep, device=x.device, dtype=torch.int64))
        return epsilon.to(torch.promote_types(epsilon.dtype, x.dtype))

    def look(self, x: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """The clean image in [-1, 1] and the noise that the predictor finds in x; together they are x."""
        a = self.table[timestep]
        epsilon = self.predict(x, timestep)
        clean = ((x - math.sqrt(1 - a) * epsilon) / math.sqrt(a)).clamp(-1, 1).to(x.dtype)
        # Clipping changed the clean image, so the noise has to follow.
        return clean, (x - math.sqrt(a) * clean) / math.sqrt(1 - a)


def _posterior_variance(a: float, a_next: float) -> float:
    """Of the less noised image, given the more noised and the clean one (Ho et al. 2020, eq. 7)."""
    return (1 - a_next) / (1 - a) * (1 - a / a_next)


def _half_log_snr(a: float) -> float:
    """lambda = log(alpha / sigma) of Lu et al. 2022."""
    return 0.5 * (math.log(a) - math.log1p(-a))
