"""The training loss: noise an image, and compare the noise that the model finds in it."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A model: (images (B, C, H, W), timesteps (B,) int64, labels (B,) int64 or None; -1 is no label) -> noise."""

NO_LABEL = -1


def add_noise(images: Tensor, noise: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Noised images, x_t of Ho et al. 2020 (eq. 4).

    images, noise: (B, C, H, W) float32, images in [-1, 1];  alpha_bar_t: (B,) float64 in (0, 1).
    """
    a = alpha_bar_t[:, None, None, None]
    return a.sqrt().to(images.dtype) * images + (1 - a).sqrt().to(images.dtype) * noise


def noise_prediction_loss(
    model: Denoiser, images: Tensor, *, labels: Tensor | None, timesteps: Tensor, noise: Tensor, alpha_bars: Tensor
) -> Tensor:
    """(B,) float32: the mean squared error of the predicted noise of every image (Ho et al. 2020, eq. 14).

    images, noise: (B, C, H, W) float32, images in [-1, 1];  labels: (B,) int64, -1 for none;  timesteps: (B,) int64 in
    [0, T);  alpha_bars: (T,) float64 on the device of the timesteps.
    """
    predicted = model(add_noise(images, noise, alpha_bars[timesteps]), timesteps, labels)
    # Under autocast the prediction has half precision; the error is squared and summed in the noise's.
    return (predicted.to(noise.dtype) - noise).square().mean(dim=(1, 2, 3))


def drop_labels(labels: Tensor, uniform: Tensor, probability: float) -> Tensor:
    """(B,) int64: the labels, with -1 where uniform < probability (Ho & Salimans 2022, algorithm 1).

    labels: (B,) int64;  uniform: (B,) in [0, 1), drawn by the caller.
    """
    return torch.where(uniform < probability, NO_LABEL, labels)
