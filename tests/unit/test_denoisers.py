"""What holds for every denoising network: shapes, labels, timesteps, gradients."""

import pytest
import torch

from hpcvision.config import ConvNextUNetConfig, DenoiserConfig, EDMUNetConfig, ResidualUNetConfig
from hpcvision.models import build_model

KINDS = (ConvNextUNetConfig, ResidualUNetConfig, EDMUNetConfig)
TINY = pytest.mark.parametrize("config", [kind(width=0.1) for kind in KINDS], ids=lambda config: config.kind)


def batch(images: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    noise = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(1))
    return noise, torch.arange(images) * 100, torch.arange(images) * 7


def test_every_denoiser_is_tested_here():
    assert set(KINDS) == set(DenoiserConfig.__args__)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("width", [0.05, 0.3, 1.0])
def test_every_width_gives_noise_of_the_images_shape(kind, width, side):
    noise = build_model(kind(width=width, image_size=side))(*batch(2, side))
    assert noise.shape == (2, 3, side, side)
    assert noise.isfinite().all()


@TINY
def test_label_minus_one_is_no_label(config):
    model, (images, timesteps, _) = build_model(config), batch(3)
    assert torch.equal(model(images, timesteps, torch.full((3,), -1)), model(images, timesteps, None))


@TINY
def test_a_label_changes_only_its_own_image(config):
    model, (images, timesteps, labels) = build_model(config), batch(3)
    with_labels = model(images, timesteps, labels)
    without_second = model(images, timesteps, labels.where(torch.arange(3) != 1, -1))
    changed = (with_labels - without_second).abs().amax(dim=(1, 2, 3))
    assert changed[1] > 1e-3
    assert changed[[0, 2]].max() < 1e-5


@TINY
def test_the_prediction_depends_on_the_timestep(config):
    model, (images, timesteps, labels) = build_model(config), batch(3)
    difference = model(images, timesteps, labels) - model(images, timesteps + 1, labels)
    assert (difference.abs().amax(dim=(1, 2, 3)) > 1e-6).all()


@TINY
@pytest.mark.parametrize("labelled", [True, False])
def test_every_parameter_gets_a_gradient(config, labelled):
    model, (images, timesteps, labels) = build_model(config), batch(2)
    model(images, timesteps, labels if labelled else torch.full_like(labels, -1)).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    zero = {name for name, parameter in model.named_parameters() if parameter.grad.abs().max() == 0}
    assert without == []
    assert zero == (set() if labelled else {"label_embedding.weight"})
