"""The residual U-Net of paper B: predicts the noise in a noised image, given its timestep and perhaps its label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcvision.config.models import ResidualUNetConfig
from hpcvision.models.layers import embed_labels, sinusoid

EMBEDDING_SIZE = 256
GROUPS = 8  # of every GroupNorm; channel counts are multiples of it
HEADS = 4


class ResidualUNet(nn.Module):
    """Noise predictor with 948,856 parameters at width 1; 24, 48 and 48 channels at full, half and quarter size.

    An architecture with the paper's parameter count; the paper does not determine it.
    """

    def __init__(self, config: ResidualUNetConfig) -> None:
        super().__init__()
        full, deep = (max(GROUPS, GROUPS * round(channels * config.width / GROUPS)) for channels in (24, 48))
        self.label_embedding = nn.Embedding(config.num_classes, EMBEDDING_SIZE)
        self.stem = nn.Conv2d(3, full, 3, padding=1)
        self.down_full = nn.ModuleList([Residual(full, full), Residual(full, full)])
        self.down_half = nn.ModuleList([Residual(full, deep), Residual(deep, deep)])
        self.down_quarter = nn.ModuleList([Residual(deep, deep), Residual(deep, deep)])
        self.pool = nn.MaxPool2d(2)
        self.middle_in, self.middle_out = Residual(deep, deep), Residual(deep, deep)
        self.middle_attention = SelfAttention(deep)
        self.up_quarter = nn.ModuleList([Residual(2 * deep, deep) for _ in range(3)])
        self.grow_half = nn.ConvTranspose2d(deep, deep, 2, stride=2)
        self.up_half = nn.ModuleList(
            [Residual(2 * deep, deep), Residual(2 * deep, deep), Residual(deep + full, deep)],
        )
        self.grow_full = nn.ConvTranspose2d(deep, deep, 2, stride=2)
        self.up_full = nn.ModuleList(
            [Residual(deep + full, full), Residual(2 * full, full), Residual(2 * full, full)],
        )
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, full), nn.SiLU(), nn.Conv2d(full, 3, 3, padding=1, bias=False))

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predicted noise (B, 3, S, S).

        images: (B, 3, S, S) float, noised;  timesteps: (B,) int64 in [0, T);  labels: (B,) int64, -1 or None for no
        label, which adds nothing to the embedding.
        """
        times = sinusoid(timesteps, EMBEDDING_SIZE, spacings=EMBEDDING_SIZE // 2)
        embedding = F.silu(times + embed_labels(self.label_embedding, labels, timesteps))
        features = self.stem(images)
        skips = [features]
        for stage in (self.down_full, self.down_half, self.down_quarter):
            for block in stage:
                features = block(features, embedding)
                skips.append(features)
            if stage is not self.down_quarter:
                features = self.pool(features)
                skips.append(features)
        features = self.middle_out(self.middle_attention(self.middle_in(features, embedding)), embedding)
        for grow, stage in ((None, self.up_quarter), (self.grow_half, self.up_half), (self.grow_full, self.up_full)):
            features = grow(features) if grow else features
            for block in stage:  # last in, first out
                features = block(torch.cat([features, skips.pop()], dim=1), embedding)
        noise: Tensor = self.head(features)
        return noise


class Residual(nn.Module):
    """Two 3x3 convolutions, each normalised, with a shift from the embedding between, around a skip."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.GroupNorm(GROUPS, channels_out), nn.SiLU()
        )
        self.shift = nn.Linear(EMBEDDING_SIZE, channels_out)
        self.second = nn.Sequential(
            nn.Conv2d(channels_out, channels_out, 3, padding=1), nn.GroupNorm(GROUPS, channels_out)
        )
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels_out, H, W) of features (B, channels_in, H, W) and embedding (B, 256), activated already."""
        hidden = self.first(features) + self.shift(embedding)[:, :, None, None]
        return F.silu(self.second(hidden) + self.skip(features))


class SelfAttention(nn.Module):
    """Softmax attention between all pixels, then a network for each (Vaswani et al. 2017), both residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.project_in = nn.Linear(channels, 3 * channels)
        self.project_out = nn.Linear(channels, channels)
        self.network = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) of the same."""
        tokens = features.flatten(2).transpose(1, 2)
        parts = self.project_in(self.norm(tokens)).unflatten(2, (3, HEADS, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.project_out(attended)
        result: Tensor = tokens + self.network(tokens)
        return result.transpose(1, 2).reshape(features.shape)
