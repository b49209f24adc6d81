"""Layers that more than one model uses."""

import math

import torch
from torch import Tensor, nn


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest whole number and at least 1."""
    return max(1, round(channels * width))


def spatial_mean(values: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C), the mean over the pixels.

    For channels_last as a mean over one axis: the gradient of a mean over two comes back in the other memory format,
    and a ReLU and BatchNorm behind it then take 15.3 ms instead of 5.9 (256 x 120 x 8 x 8, bf16, one thread of a Xeon).
    """
    if values.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
    return values.mean((2, 3))


def sinusoid(timesteps: Tensor, size: int, *, spacings: int) -> Tensor:
    """(B, size) float32: sines, then cosines, at frequencies that fall from 1 to 1/10000 in so many equal factors.

    timesteps: (B,) int64. Vaswani et al. 2017 (section 3.5); with size / 2 - 1 spacings the last frequency is 1/10000
    itself, as in the DDPM code of Ho et al. 2020, with size / 2 the factor before it, as in the paper.
    """
    steps = torch.arange(size // 2, device=timesteps.device, dtype=torch.float32)
    angles = timesteps.float().unsqueeze(1) * torch.exp(-steps * (math.log(10_000) / spacings))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def embed_labels(table: nn.Embedding, labels: Tensor | None, timesteps: Tensor) -> Tensor:
    """(B, size of the table's rows): the row of every label, zeros for -1; labels None is -1 for all timesteps.

    Masked rather than skipped, so that the table always has a gradient; DDP waits for one of every parameter.
    """
    if labels is None:
        labels = torch.full_like(timesteps, -1)
    rows: Tensor = table(labels.clamp(min=0)) * (labels >= 0).unsqueeze(1)
    return rows


class DepthwiseSeparable(nn.Sequential):
    """A 3x3 filter per channel, then a 1x1 mix of channels; both with bias, nothing between (Howard et al. 2017).

    (B, inputs, H, W) -> (B, outputs, H, W). Costs 1/outputs + 1/9 of a standard 3x3 convolution's weights.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs),
            nn.Conv2d(inputs, outputs, 1),
        )
        self.inputs = inputs
        self.outputs = outputs

    @property
    def share_of_standard(self) -> float:
        """Parameters as a fraction of those of a standard 3x3 convolution with bias between the same channels."""
        own = sum(parameter.numel() for parameter in self.parameters())
        return own / (9 * self.inputs * self.outputs + self.outputs)
