"""AddNIST by its structure: one network reads the digit of every channel, and the three distributions are convolved.

Only the sum is ever given, so which of the ten outputs is which digit is found from sums alone; the head that adds has
no parameters. Sharing the network makes three digits out of every image, and the order of the channels cannot matter.

The network is three small readers side by side, whose logits are averaged. A reader keeps where a stroke is: it has
convolutions without padding or pooling, and one linear layer over all that is left (An et al. 2020, arXiv:2008.10400).
"""

import torch
from torch import nn
from torch.nn import functional

from hpcvision.config import DigitSumConfig
from hpcvision.models.layers import scaled

DIGITS = 10
READERS = 3
SMALLEST = 1e-30
"""Probabilities are at least this before their logarithm; float32 goes down to 1e-38."""


class DigitSum(nn.Module):
    """(B, 3, S, S) float -> (B, 20) log-probabilities of the sums 1 to 20; 97,764 parameters at width 1."""

    def __init__(self, config: DigitSumConfig) -> None:
        super().__init__()
        self.readers = nn.ModuleList(reader(config) for _ in range(READERS))

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
        one_by_one = images.flatten(0, 1).unsqueeze(1)
        logits = torch.stack([read(one_by_one).float() for read in self.readers]).mean(0)
        return logits.softmax(1).view(len(images), -1, DIGITS)


def reader(config: DigitSumConfig) -> nn.Sequential:
    """(N, 1, S, S) -> (N, 10) logits; the norm at the end gives every reader the same weight in the mean."""
    layers: list[nn.Module] = []
    inputs, side = 1, config.image_size
    for channels, kernel, stride in ((16, 5, 2), (24, 3, 1), (28, 3, 1), (32, 3, 1), (32, 3, 1)):
        outputs = scaled(channels, config.width)
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs, side = outputs, (side - kernel) // stride + 1
    head = nn.Linear(inputs * side * side, DIGITS, bias=False)
    return nn.Sequential(*layers, nn.Flatten(), head, nn.BatchNorm1d(DIGITS))


def added(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(B, m + n - 1): distribution of the sum of two independent numbers with distributions (B, m) and (B, n)."""
    m, n = one.shape[1], other.shape[1]
    both = one.unsqueeze(2) * other.unsqueeze(1)
    # With m zeros behind every row and the whole cut to rows that are one shorter, row i stands i places further right.
    shifted = functional.pad(both, (0, m)).flatten(1)[:, : m * (m + n - 1)]
    return shifted.reshape(-1, m, m + n - 1).sum(1)
