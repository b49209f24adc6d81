"""Sampling noise: image i depends on seed i alone, whatever the batch, the device or the number of processes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpcvision.seeding import generator

StepNoise = Callable[[int], Tensor]
"""timestep -> (B, C, H, W) float32 standard normal noise."""


def image_noise(
    seeds: Sequence[int],
    shape: tuple[int, ...],
    *,
    name: str = "sample",
    counters: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> Tensor:
    """(len(seeds), *shape) float32 standard normal noise; row i is stream (seeds[i], name, *counters).

    Drawn on the CPU, because a CUDA generator gives other numbers.
    """
    noise = torch.empty(len(seeds), *shape)
    for row, seed in zip(noise, seeds, strict=True):
        row.normal_(generator=generator(seed, name, *counters))
    return noise.to(device)


def image_step_noise(
    seeds: Sequence[int], shape: tuple[int, ...], *, name: str = "sample", device: torch.device | str = "cpu"
) -> StepNoise:
    """The noise that a stochastic sampler adds at each timestep; never the numbers of `image_noise` itself."""
    return lambda timestep: image_noise(seeds, shape, name=name, counters=(timestep,), device=device)
