"""A plain network for AddNIST whose convolutions keep the three channels apart (ResNeXt's groups, arXiv:1611.05431).

Nothing is shared between the channels, and nothing of digits or sums is built in: features of each channel are pooled,
and two linear layers learn what becomes of all of them together.
"""

import torch
from torch import nn
from torch.nn import functional

from hpcvision.config import GroupedCNNConfig
from hpcvision.models.layers import scaled

GROUPS = 3
HIDDEN = 72


class GroupedCNN(nn.Module):
    """(B, 3, S, S) float -> (B, num_classes) logits; 97,484 parameters at width 1."""

    def __init__(self, config: GroupedCNNConfig) -> None:
        super().__init__()
        first, second, third, fourth = (GROUPS * scaled(channels, config.width) for channels in (24, 24, 40, 40))
        self.features = nn.Sequential(
            *convolution(3, first, 5, stride=2),
            *convolution(first, second, 3),
            nn.MaxPool2d(2),
            *convolution(second, third, 3),
            *convolution(third, fourth, 3),
        )
        self.head = nn.Sequential(
            *(nn.Linear(fourth, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
            nn.Linear(HIDDEN, config.num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the classes for a batch of normalised images."""
        features = self.features(images)
        # Not AdaptiveMaxPool2d, which has no deterministic backward pass on CUDA.
        largest = functional.max_pool2d(features, (features.shape[2], features.shape[3])).flatten(1)
        logits: torch.Tensor = self.head(largest)
        return logits


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution in groups with its norm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=GROUPS, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]
