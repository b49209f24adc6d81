"""The training loss: noise an image, and compare what the model finds in it with what is there."""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcvision.config.run import Prediction

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A model: (images (B, C, H, W), timesteps (B,) int64, labels (B,) int64 or None; -1 is no label) -> prediction."""

PredictNoise = Callable[[Tensor, Tensor], Tensor]
"""(noised images (B, C, H, W), timesteps (B,) int64) -> the noise in them; label and guidance are bound already."""

NO_LABEL = -1


def add_noise(images: Tensor, noise: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Noised images, x_t of Ho et al. 2020 (eq. 4).

    images, noise: (B, C, H, W) float32, images in [-1, 1];  alpha_bar_t: (B,) float64 in (0, 1).
    """
    a = alpha_bar_t[:, None, None, None]
    return a.sqrt().to(images.dtype) * images + (1 - a).sqrt().to(images.dtype) * noise


def denoising_loss(
    model: Denoiser,
    images: Tensor,
    *,
    labels: Tensor | None,
    timesteps: Tensor,
    noise: Tensor,
    alpha_bars: Tensor,
    prediction: Prediction = "epsilon",
    min_snr_gamma: float | None = None,
) -> Tensor:
    """(B,) float32: the mean squared error of what the model predicts for every image, weighted by its timestep.

    images, noise: (B, C, H, W) float32, images in [-1, 1];  labels: (B,) int64, -1 for none;  timesteps: (B,) int64 in
    [0, T);  alpha_bars: (T,) float64 on the device of the timesteps. With the prediction epsilon and no gamma it is
    the simple loss of Ho et al. 2020 (eq. 14).
    """
    a = alpha_bars[timesteps]
    predicted = model(add_noise(images, noise, a), timesteps, labels)
    # Under autocast the prediction has half precision; the error is squared and summed in the noise's.
    target = prediction_target(images, noise, a, prediction)
    losses = (predicted.to(noise.dtype) - target).square().mean(dim=(1, 2, 3))
    return losses if min_snr_gamma is None else losses * min_snr_weight(a, prediction, min_snr_gamma).to(losses.dtype)


def prediction_target(images: Tensor, noise: Tensor, alpha_bar_t: Tensor, prediction: Prediction) -> Tensor:
    """(B, C, H, W) float32, what the model shall predict: the noise, the clean image x0, or the velocity v.

    v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022, section 4).
    """
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return images
    return add_noise(noise, -images, alpha_bar_t)


def min_snr_weight(alpha_bar_t: Tensor, prediction: Prediction, gamma: float) -> Tensor:
    """(B,) float64: the weight that makes the squared error of any prediction one of x0 weighted by min(SNR, gamma).

    SNR = alpha_bar / (1 - alpha_bar). The error of x0 is that of the noise / SNR, and that of v / (SNR + 1) (Hang et
    al. 2023, section 3.4).
    """
    snr = alpha_bar_t / (1 - alpha_bar_t)
    clipped = snr.clamp(max=gamma)
    return {"x0": clipped, "epsilon": clipped / snr, "v": clipped / (snr + 1)}[prediction]


def as_noise(predict: Callable[[Tensor, Tensor], Tensor], alpha_bars: Tensor, prediction: Prediction) -> PredictNoise:
    """The noise predictor that the samplers take, from one of epsilon, x0 or v.

    Guidance may come first: all three are affine in one another with the same x, so it means the same in each.
    """
    if prediction == "epsilon":
        return predict

    def predict_noise(noised: Tensor, timesteps: Tensor) -> Tensor:
        a = alpha_bars[timesteps][:, None, None, None]
        # float64: at the last timestep of the cosine schedule the samplers divide by sqrt(alpha_bar) = 5e-5.
        predicted = predict(noised, timesteps).double()
        if prediction == "x0":
            return (noised - a.sqrt() * predicted) / (1 - a).sqrt()
        return a.sqrt() * predicted + (1 - a).sqrt() * noised

    return predict_noise


def drop_labels(labels: Tensor, uniform: Tensor, probability: float) -> Tensor:
    """(B,) int64: the labels, with -1 where uniform < probability (Ho & Salimans 2022, algorithm 1).

    labels: (B,) int64;  uniform: (B,) in [0, 1), drawn by the caller.
    """
    return torch.where(uniform < probability, NO_LABEL, labels)
