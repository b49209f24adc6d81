"""A small U-Net for EDM training: most of its weights are 3x3 filters, and every block runs more than once."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcvision.config.models import EDMUNetConfig
from hpcvision.models.layers import embed_labels, sinusoid

FREQUENCIES = 64
EMBEDDING_SIZE = 128
RANK = 12  # of the modulation: a full projection of every pass would take a third of a million weights
GROUPS = 8  # of every GroupNorm; channel counts are multiples of it
HEADS = 4


class EDMUNet(nn.Module):
    """Denoiser with 64, 88 and 96 channels at full, half and quarter size, below 1,000,000 parameters at width 1.

    Residual blocks with adaptive group norm and attention at the deeper sizes, as in Karras et al. 2022; that blocks
    run several times, and that their modulation has a low rank, is for the cap.
    """

    def __init__(self, config: EDMUNetConfig) -> None:
        super().__init__()
        full, half, quarter = (max(GROUPS, GROUPS * round(size * config.width / GROUPS)) for size in (64, 88, 96))
        self.time_network = nn.Sequential(
            nn.Linear(FREQUENCIES, EMBEDDING_SIZE), nn.SiLU(), nn.Linear(EMBEDDING_SIZE, EMBEDDING_SIZE)
        )
        self.label_embedding = nn.Embedding(config.num_classes, EMBEDDING_SIZE)
        self.stem = nn.Conv2d(3, full, 3, padding=1)
        self.down_full = Recurrent(full, config.passes)
        self.to_half = nn.Conv2d(full, half, 1)
        self.down_half = nn.ModuleList([Recurrent(half, config.passes), Attention(half)])
        self.to_quarter = nn.Conv2d(half, quarter, 1)
        self.deep = nn.ModuleList(
            [Recurrent(quarter, config.passes), Attention(quarter), Recurrent(quarter, config.passes)]
        )
        self.from_quarter = nn.Conv2d(quarter + half, half, 1)
        self.up_half = nn.ModuleList([Recurrent(half, config.passes), Attention(half)])
        self.from_half = nn.Conv2d(half + full, full, 1)
        self.up_full = Recurrent(full, config.passes)
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, full), nn.SiLU(), nn.Conv2d(full, 3, 3, padding=1))

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Prediction (B, 3, S, S).

        images: (B, 3, S, S) float, noised;  timesteps: (B,) int64 in [0, T);  labels: (B,) int64, -1 or None for no
        label, which adds nothing to the embedding.
        """
        times = self.time_network(sinusoid(timesteps, FREQUENCIES, spacings=FREQUENCIES // 2))
        embedding = F.silu(times + embed_labels(self.label_embedding, labels, timesteps))
        full = self.down_full(self.stem(images), embedding)
        half = run(self.down_half, self.to_half(F.avg_pool2d(full, 2)), embedding)
        features = run(self.deep, self.to_quarter(F.avg_pool2d(half, 2)), embedding)
        features = self.from_quarter(torch.cat([F.interpolate(features, scale_factor=2.0), half], dim=1))
        features = run(self.up_half, features, embedding)
        features = self.from_half(torch.cat([F.interpolate(features, scale_factor=2.0), full], dim=1))
        prediction: Tensor = self.head(self.up_full(features, embedding))
        return prediction


def run(blocks: nn.ModuleList, features: Tensor, embedding: Tensor) -> Tensor:
    """The blocks one after the other; all take features and embedding."""
    for block in blocks:
        features = block(features, embedding)
    return features


class Recurrent(nn.Module):
    """A residual block whose two 3x3 convolutions are used in every pass; norms, modulation and gain are the pass's."""

    def __init__(self, channels: int, passes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms_before = nn.ModuleList([nn.GroupNorm(GROUPS, channels) for _ in range(passes)])
        self.norms_between = nn.ModuleList([nn.GroupNorm(GROUPS, channels, affine=False) for _ in range(passes)])
        self.modulations = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(EMBEDDING_SIZE, RANK, bias=False), nn.Linear(RANK, 2 * channels))
                for _ in range(passes)
            ]
        )
        self.gains = nn.ModuleList([Gain(channels) for _ in range(passes)])

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels, H, W) of features of that shape and embedding (B, 128), activated already."""
        passes = zip(self.norms_before, self.norms_between, self.modulations, self.gains, strict=True)
        for before, between, modulation, gain in passes:
            scale, shift = modulation(embedding)[:, :, None, None].chunk(2, dim=1)
            hidden = between(self.first(F.silu(before(features))))
            hidden = self.second(F.silu(torch.addcmul(shift, hidden, scale + 1)))
            features = features + gain(hidden)
        return features


class Gain(nn.Module):
    """A learnt factor for every channel, small at first, so that a fresh block changes little however often it runs.

    Not zero: no weight of the block would have a gradient at the first step.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) of the same."""
        return features * self.weight


class Attention(nn.Module):
    """Softmax attention between all pixels, residual (Vaswani et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.project_in = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor, _embedding: Tensor) -> Tensor:
        """(B, channels, H, W) of the same; the embedding is not used."""
        parts = self.project_in(self.norm(features)).flatten(2).unflatten(1, (3, HEADS, -1))
        query, key, value = parts.transpose(3, 4).unbind(1)
        attended = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = features + self.project_out(attended.transpose(2, 3).flatten(1, 2).reshape(features.shape))
        return result
