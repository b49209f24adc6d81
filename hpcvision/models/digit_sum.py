"""AddNIST by its structure: one network reads the digit of every channel, and the three distributions are convolved.

Only the sum is ever given, so which of the ten outputs is which digit is found from sums alone; the head that adds has
no parameters. Sharing one reader makes three digits out of every image, and the order of the channels cannot matter.
"""

import torch
from torch import nn
from torch.nn import functional

from hpcvision.config import DigitSumConfig
from hpcvision.models.layers import scaled

DIGITS = 10
SMALLEST = 1e-30
"""Probabilities are at least this before their logarithm; float32 goes down to 1e-38."""


class DigitSum(nn.Module):
    """(B, 3, S, S) float -> (B, 20) log-probabilities of the sums 1 to 20; 96,850 parameters at width 1."""

    def __init__(self, config: DigitSumConfig) -> None:
        super().__init__()
        first, second, third, fourth = (scaled(channels, config.width) for channels in (32, 40, 72, 88))
        self.reader = nn.Sequential(
            *(nn.Conv2d(1, first, 5, stride=2, padding=2), nn.BatchNorm2d(first), nn.ReLU()),
            *(nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(second, third, 3, padding=1), nn.BatchNorm2d(third), nn.ReLU()),
            *(nn.Conv2d(third, fourth, 3, padding=1), nn.BatchNorm2d(fourth), nn.ReLU()),
            # What a stroke looks like matters, not where it is.
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(fourth, DIGITS)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the sums 1 to 20 of a batch of normalised images.

        AddNIST has no sums 0 and 21 to 27; without them the rest adds up to less than 1, which the cross-entropy's own
        normalisation mends.
        """
        one, two, three = self.digits(images).unbind(1)
        sums = added(added(one, two), three)
        return sums[:, 1:21].clamp(min=SMALLEST).log()

    def digits(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, 10) float32 probabilities of the digit in every channel, in an order of the network's own."""
        logits: torch.Tensor = self.reader(images.flatten(0, 1).unsqueeze(1))
        return logits.float().softmax(1).view(len(images), -1, DIGITS)


def added(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(B, m + n - 1): distribution of the sum of two independent numbers with distributions (B, m) and (B, n)."""
    m, n = one.shape[1], other.shape[1]
    both = one.unsqueeze(2) * other.unsqueeze(1)
    # With m zeros behind every row and the whole cut to rows that are one shorter, row i stands i places further right.
    shifted = functional.pad(both, (0, m)).flatten(1)[:, : m * (m + n - 1)]
    return shifted.reshape(-1, m, m + n - 1).sum(1)
