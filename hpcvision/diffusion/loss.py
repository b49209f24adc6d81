"""The training loss: noise an image, and compare what the model finds in it with what is there."""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcvision.config.task import Prediction

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
    sigma_data: float = 0.5,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """(B,) float32: the mean squared error of what the model predicts for every image, weighted by its timestep.

    images, noise: (B, C, H, W) float32, images in [-1, 1];  labels: (B,) int64, -1 for none;  timesteps: (B,) int64 in
    [0, T);  alpha_bars: (T,) float64 on the device of the timesteps. With the prediction epsilon and no gamma it is
    the simple loss of Ho et al. 2020 (eq. 14); with the prediction edm it is that of Karras et al. 2022 (eq. 8).
    """
    a = alpha_bars[timesteps]
    noised = add_noise(images, noise, a)
    if prediction == "edm":
        noised = noised * edm_scale(a, sigma_data)[:, None, None, None].to(noised.dtype)
    predicted = model(noised, timesteps, labels)
    # Under autocast the prediction has half precision; the error is squared and summed in the noise's.
    target = prediction_target(images, noise, a, prediction, sigma_data)
    losses = (predicted.to(noise.dtype) - target).square().mean(dim=(1, 2, 3))
    if min_snr_gamma is None:
        return losses
    return losses * min_snr_weight(a, prediction, min_snr_gamma, sigma_data).to(losses.dtype)


def prediction_target(
    images: Tensor, noise: Tensor, alpha_bar_t: Tensor, prediction: Prediction, sigma_data: float = 0.5
) -> Tensor:
    """(B, C, H, W) float32, what the model shall predict: the noise, the clean image x0, the velocity v, or EDM's F.

    v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022, section 4). F is the clean image without
    the share that a linear filter finds, (x0 - c_skip y) / c_out (Karras et al. 2022, eq. 8 and table 1), in alpha_bar.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return images
    if prediction == "v":
        return add_noise(noise, -images, alpha_bar_t)
    a, scale = alpha_bar_t[:, None, None, None], edm_scale(alpha_bar_t, sigma_data)[:, None, None, None]
    of_image, of_noise = scale * (1 - a).sqrt() / sigma_data, scale * a.sqrt() * sigma_data
    return of_image.to(images.dtype) * images - of_noise.to(images.dtype) * noise


def edm_scale(alpha_bar_t: Tensor, sigma_data: float) -> Tensor:
    """(B,) float64: the factor that gives noised images unit variance, where the clean ones have sigma_data squared.

    c_in of Karras et al. 2022 (table 1), for images scaled by sqrt(alpha_bar) as everywhere here.
    """
    return (1 - alpha_bar_t + alpha_bar_t * sigma_data**2).rsqrt()


def min_snr_weight(alpha_bar_t: Tensor, prediction: Prediction, gamma: float, sigma_data: float = 0.5) -> Tensor:
    """(B,) float64: the weight that makes the squared error of any prediction one of x0 weighted by min(SNR, gamma).

    SNR = alpha_bar / (1 - alpha_bar). The error of x0 is that of the noise / SNR, that of v / (SNR + 1) (Hang et al.
    2023, section 3.4), and that of EDM's F times c_out squared.
    """
    snr = alpha_bar_t / (1 - alpha_bar_t)
    clipped = snr.clamp(max=gamma)
    if prediction == "edm":
        return clipped * (1 - alpha_bar_t) * (sigma_data * edm_scale(alpha_bar_t, sigma_data)).square()
    return {"x0": clipped, "epsilon": clipped / snr, "v": clipped / (snr + 1)}[prediction]


def as_noise(
    predict: Callable[[Tensor, Tensor], Tensor], alpha_bars: Tensor, prediction: Prediction, sigma_data: float = 0.5
) -> PredictNoise:
    """The noise predictor that the samplers take, from one of epsilon, x0, v or edm.

    Guidance may come first: all are affine in one another with the same x, so it means the same in each.
    """
    if prediction == "epsilon":
        return predict

    def predict_noise(noised: Tensor, timesteps: Tensor) -> Tensor:
        a = alpha_bars[timesteps][:, None, None, None]
        if prediction == "edm":
            scale = edm_scale(a, sigma_data)
            predicted = predict((noised * scale).to(noised.dtype), timesteps).double()
            return (1 - a).sqrt() * scale**2 * noised - a.sqrt() * sigma_data * scale * predicted
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
