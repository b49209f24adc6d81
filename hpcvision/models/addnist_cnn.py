"""The AddNIST network of paper B: four convolutions with max-pools between, then two linear layers."""

import itertools

import torch
from torch import nn

from hpcvision.config import AddNISTCNNConfig
from hpcvision.models.layers import scaled


class AddNISTCNN(nn.Module):
    """(B, 3, S, S) float -> (B, num_classes) logits; 98,740 parameters at width 1, 28x28 and 20 classes."""

    def __init__(self, config: AddNISTCNNConfig) -> None:
        super().__init__()
        channels = [3, *(scaled(count, config.width) for count in (16, 32, 64, 64))]
        hidden = scaled(64, config.width)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            # ReLU after max-pool: the same function as the paper's order for a quarter of the work.
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        del layers[-2]  # no max-pool after the last convolution
        self.features = nn.Sequential(*layers)
        pooled = config.image_size // 8
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels[-1] * pooled * pooled, hidden),
            nn.ReLU(),
            nn.Linear(hidden, config.num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of normalised images."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits
