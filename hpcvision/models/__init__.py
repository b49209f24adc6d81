"""Every model by its `kind`, built from its configuration."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hpcvision.config import DenoiserConfig, ModelConfig
from hpcvision.models.addnist_cnn import AddNISTCNN
from hpcvision.models.baby_mobilenet import BabyMobileNet
from hpcvision.models.compact_net import CompactNet
from hpcvision.models.convnext_unet import ConvNextUNet
from hpcvision.models.digit_sum import DigitSum
from hpcvision.models.edm_unet import EDMUNet
from hpcvision.models.grouped_cnn import GroupedCNN
from hpcvision.models.residual_unet import ResidualUNet
from hpcvision.provenance import source_of
from hpcvision.seeding import stream_seed

MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "baby_mobilenet": BabyMobileNet,
    "addnist_cnn": AddNISTCNN,
    "digit_sum": DigitSum,
    "grouped_cnn": GroupedCNN,
    "compact_net": CompactNet,
    "convnext_unet": ConvNextUNet,
    "residual_unet": ResidualUNet,
    "edm_unet": EDMUNet,
}


def source_of_model(config: ModelConfig) -> dict[str, str]:
    """Path and text of the files that say what a model computes; of a generator also how images are drawn with it."""
    module = MODELS[config.kind].__module__.removeprefix("hpcvision.")
    return source_of(module, *(["diffusion"] if isinstance(config, DenoiserConfig) else []))


def build_model(config: ModelConfig, *, seed: int = 0) -> nn.Module:
    """The model with torch's default initialisation, drawn from the stream "initial weights" of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "initial weights"))
        return MODELS[config.kind](config)
