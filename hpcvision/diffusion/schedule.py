"""How much of the image is left at every timestep of the forward process."""

import math

import torch
from torch import Tensor

from hpcvision.config.run import DiffuseConfig


def alpha_bar(config: DiffuseConfig) -> Tensor:
    """(T,) float64 in (0, 1), falling: the share of the image's variance left at timestep t, counted from 0.

    Ho et al. 2020 (eq. 4); index t is the paper's t + 1.
    """
    betas = linear_betas(config.timesteps) if config.noise_schedule == "linear" else cosine_betas(config.timesteps)
    # float64: in float32, 1 - alpha_bar at the first step is off by 5e-4 (relative; cosine, T = 1000).
    return torch.cumprod(1 - betas, dim=0)


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
