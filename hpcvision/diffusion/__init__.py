"""The mathematics of diffusion models: schedules, losses, guidance and samplers; it never sees a network's inside."""

from hpcvision.diffusion.guidance import blended, guided, within
from hpcvision.diffusion.interpolate import linear, slerp
from hpcvision.diffusion.loss import PredictNoise, add_noise, as_noise, denoising_loss, drop_labels
from hpcvision.diffusion.noise import image_noise, image_step_noise
from hpcvision.diffusion.samplers import encode, noise_power, sampler_of
from hpcvision.diffusion.schedule import alpha_bar, draw_timesteps

__all__ = [
    "PredictNoise",
    "add_noise",
    "alpha_bar",
    "as_noise",
    "blended",
    "denoising_loss",
    "draw_timesteps",
    "drop_labels",
    "encode",
    "guided",
    "image_noise",
    "image_step_noise",
    "linear",
    "noise_power",
    "sampler_of",
    "slerp",
    "within",
]
