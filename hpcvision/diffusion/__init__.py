"""The mathematics of diffusion models: schedules, losses, guidance and samplers; it never sees a network's inside."""

from hpcvision.diffusion.guidance import guided
from hpcvision.diffusion.interpolate import linear, slerp
from hpcvision.diffusion.loss import add_noise, as_noise, denoising_loss, drop_labels
from hpcvision.diffusion.noise import image_noise, image_step_noise
from hpcvision.diffusion.samplers import sampler_of
from hpcvision.diffusion.schedule import alpha_bar

__all__ = [
    "add_noise",
    "alpha_bar",
    "as_noise",
    "denoising_loss",
    "drop_labels",
    "guided",
    "image_noise",
    "image_step_noise",
    "linear",
    "sampler_of",
    "slerp",
]
