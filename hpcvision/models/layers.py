"""Layers that more than one model uses."""

from torch import nn


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest whole number and at least 1."""
    return max(1, round(channels * width))


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
