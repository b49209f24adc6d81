"""Baby MobileNet: two standard convolutions, then three depthwise-separable blocks (paper A, figure 1)."""

import torch
from torch import nn

from hpcvision.config import BabyMobileNetConfig
from hpcvision.models.layers import DepthwiseSeparable, scaled, spatial_mean


class BabyMobileNet(nn.Module):
    """(B, 3, S, S) float -> (B, num_classes) logits; 97,584 parameters at width 1 and 100 classes."""

    def __init__(self, config: BabyMobileNetConfig) -> None:
        super().__init__()
        # ReLU after max-pool, where the paper draws it before: the same values and gradients, as ReLU keeps the order,
        # for a quarter of the work. Not in place: in bf16 that kernel takes twice as long on a CPU (16 ms against 8 for
        # the first layer and 512 images, one thread of a Xeon with AMX).
        first, second, *deep = (scaled(channels, config.width) for channels in (32, 64, 120, 220, 120))
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.MaxPool2d(2), nn.ReLU()),
            nn.Dropout(config.dropout),
        )
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(DepthwiseSeparable(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU())
                for inputs, outputs in zip([second, *deep[:-1]], deep, strict=True)
            )
        )
        self.classifier = nn.Linear(deep[-1], config.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of normalised images."""
        logits: torch.Tensor = self.classifier(spatial_mean(self.blocks(self.stem(images))))
        return logits
