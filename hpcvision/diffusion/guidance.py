"""Classifier-free guidance: from a model that knows labels to a plain predictor for the samplers."""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcvision.diffusion.loss import NO_LABEL, Denoiser, PredictNoise


def everywhere(_timesteps: Tensor) -> bool:
    """For `guided`: guide at every timestep."""
    return True


def guided(
    model: Denoiser, labels: Tensor, scale: float, applies: Callable[[Tensor], bool] = everywhere
) -> PredictNoise:
    """The predictor unconditional + scale * (conditional - unconditional); labels: (B,) int64, -1 for none.

    Ho & Salimans 2022 (eq. 6), whose w is scale - 1. Scale 1 is the plain conditional model and costs one evaluation
    an image, any other scale two, in one batch. applies: (B,) timesteps, all the same -> whether to guide there; else
    the conditional model predicts alone (Kynkaanniemi et al. 2024).
    """
    both_labels = torch.cat([labels, torch.full_like(labels, NO_LABEL)])

    def predict(images: Tensor, timesteps: Tensor) -> Tensor:
        if scale == 1 or not applies(timesteps):
            return model(images, timesteps, labels)
        both = model(torch.cat([images, images]), torch.cat([timesteps, timesteps]), both_labels)
        conditional, unconditional = both.to(images.dtype).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return predict


def within(alpha_bars: Tensor, interval: tuple[float, float] | None) -> Callable[[Tensor], bool]:
    """For `guided`: whether sigma, the noise over the signal, is in the closed interval; None is everywhere."""
    if interval is None:
        return everywhere
    sigmas = (1 / alpha_bars - 1).sqrt().tolist()
    low, high = interval
    # The samplers give one timestep to a whole batch; on CUDA the host waits for it.
    return lambda timesteps: low <= sigmas[int(timesteps[0])] <= high


def blended(one: PredictNoise, other: PredictNoise, fractions: Tensor) -> PredictNoise:
    """The predictor (1 - fraction) * one + fraction * other, a fraction in [0, 1] for every image: (B,).

    So images go over from one class to another without a jump; 0 and 1 are exactly one and the other.
    """

    def predict(images: Tensor, timesteps: Tensor) -> Tensor:
        first, second = one(images, timesteps), other(images, timesteps)
        return torch.lerp(first, second, fractions[:, None, None, None].to(first.dtype))

    return predict
