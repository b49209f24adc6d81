"""A classifier for small images: Baby MobileNet's stem, then residual blocks that run several times.

A block is a filter per channel and a mix of channels (Howard et al. 2017) beside an identity (He et al. 2016). Its
weights are used in every pass, with norms of the pass's own, as ThriftyNet (arXiv:2007.10106) shares one convolution
over all of a network: work instead of weights, which the cap counts.
"""

from torch import Tensor, nn
from torch.nn import functional

from hpcvision.config import CompactNetConfig
from hpcvision.models.layers import scaled, spatial_mean


class CompactNet(nn.Module):
    """(B, 3, S, S) float -> (B, num_classes) logits."""

    def __init__(self, config: CompactNetConfig) -> None:
        super().__init__()
        first, second, channels = (scaled(count, config.width) for count in (32, 64, 88))
        # ReLU after max-pool, as in Baby MobileNet.
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(first, second, 3, padding=1, bias=False), nn.BatchNorm2d(second), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(second, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )
        self.blocks = nn.Sequential(*(Block(channels, config.passes) for _ in range(config.blocks)))
        self.classifier = nn.Linear(channels, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of normalised images."""
        logits: Tensor = self.classifier(spatial_mean(functional.relu(self.blocks(self.stem(images)))))
        return logits


class Block(nn.Module):
    """(B, C, H, W) -> (B, C, H, W): ReLU, 3x3 filters, norm, mix, norm, added to what came in; once for each pass."""

    def __init__(self, channels: int, passes: int) -> None:
        super().__init__()
        self.filters = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.filtered = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(passes))
        self.mixed = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(passes))

    def forward(self, features: Tensor) -> Tensor:
        """The features after all passes."""
        for filtered, mixed in zip(self.filtered, self.mixed, strict=True):
            hidden = filtered(self.filters(functional.relu(features)))
            features = features + mixed(self.mix(hidden))
        return features
