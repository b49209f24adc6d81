"""How much of the image is left at every timestep of the forward process."""

import math

import torch
from torch import Tensor

from hpcvision.config.task import DiffuseConfig

EDM_SIGMAS = (0.002, 80.0)


def alpha_bar(config: DiffuseConfig) -> Tensor:
    """(T,) float64 in (0, 1), falling: the share of the image's variance left at timestep t, counted from 0.

    Ho et al. 2020 (eq. 4); index t is the paper's t + 1.
    """
    if config.noise_schedule == "edm":
        return 1 / (1 + edm_sigmas(config.timesteps).square())
    betas = linear_betas(config.timesteps) if config.noise_schedule == "linear" else cosine_betas(config.timesteps)
    # float64: in float32, 1 - alpha_bar at the first step is off by 5e-4 (relative; cosine, T = 1000).
    return torch.cumprod(1 - betas, dim=0)


def draw_timesteps(config: DiffuseConfig, count: int, stream: torch.Generator) -> Tensor:
    """(count,) int64 in [0, T): the noise levels of training; all alike, or for edm log-normal in sigma.

    Karras et al. 2022 (table 1): ln sigma ~ N(log_sigma_mean, log_sigma_deviation^2), here to the nearest level.
    """
    if config.noise_schedule != "edm":
        return torch.randint(config.timesteps, (count,), generator=stream)
    wanted = config.log_sigma_mean + config.log_sigma_deviation * torch.randn(count, generator=stream)
    low, high = (math.log(sigma) for sigma in EDM_SIGMAS)
    share = (wanted - low) / (high - low)
    return (share * (config.timesteps - 1)).round().clamp(0, config.timesteps - 1).long()


def edm_sigmas(timesteps: int) -> Tensor:
    """(T,) float64, the noise over the signal, in equal factors from 0.002 to 80 (Karras et al. 2022, table 1).

    A network that is told the timestep is so told ln sigma, as there. With 1,000 levels a factor is 1.011; training
    takes the nearest one.
    """
    low, high = (math.log(sigma) for sigma in EDM_SIGMAS)
    return torch.linspace(low, high, timesteps, dtype=torch.float64).exp()


def linear_betas(timesteps: int) -> Tensor:
    """(T,) float64 from 1e-4 to 0.02 (Ho et al. 2020, section 4).

    The ends are not rescaled with T, and belong to T = 1000: far fewer timesteps leave much of the image in the last.
    """
    return torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64)


def cosine_betas(timesteps: int) -> Tensor:
    """(T,) float64 such that alpha_bar falls as a squared cosine (Nichol & Dhariwal 2021, eq. 17, s = 0.008).

    Clipped at 0.999 as in the paper, because alpha_bar would reach 0 at the end.
    """
    s = 0.008
    times = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    f = torch.cos((times + s) / (1 + s) * (math.pi / 2)).square()
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)
