"""Classifier-free guidance: from a model that knows labels to a plain noise predictor for the samplers."""

import torch
from torch import Tensor

from hpcvision.diffusion.loss import NO_LABEL, Denoiser, PredictNoise


def guided(model: Denoiser, labels: Tensor, scale: float) -> PredictNoise:
    """The noise predictor unconditional + scale * (conditional - unconditional); labels: (B,) int64, -1 for none.

    Ho & Salimans 2022 (eq. 6), whose w is scale - 1. Scale 1 is the plain conditional model and costs one evaluation
    an image, any other scale two, in one batch.
    """
    if scale == 1:
        return lambda images, timesteps: model(images, timesteps, labels)
    both_labels = torch.cat([labels, torch.full_like(labels, NO_LABEL)])

    def predict_noise(images: Tensor, timesteps: Tensor) -> Tensor:
        both = model(torch.cat([images, images]), torch.cat([timesteps, timesteps]), both_labels)
        conditional, unconditional = both.to(images.dtype).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return predict_noise
