"""The ConvNeXt U-Net of paper A: predicts the noise in a noised image, given its timestep and perhaps its label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcvision.config.models import ConvNextUNetConfig
from hpcvision.models.layers import DepthwiseSeparable, embed_labels, sinusoid

SINUSOID_SIZE = 32
EMBEDDING_SIZE = 128
HEADS, HEAD_SIZE = 4, 32
ATTENTION_SIZE = HEADS * HEAD_SIZE


class ConvNextUNet(nn.Module):
    """Noise predictor with 960,223 parameters at width 1; 20 -> 32 -> 64 -> 128 channels at full, half, quarter size.

    The paper does not give its network layer by layer. This one has its exact parameter count and agrees with its
    prose and with the code that it cites; its details are not unique.
    """

    def __init__(self, config: ConvNextUNetConfig) -> None:
        super().__init__()
        # At least 4 channels, so that a tiny width in a test still leaves a network.
        stem, full, half, quarter = (max(4, round(channels * config.width)) for channels in (20, 32, 64, 128))
        self.time_embedding = nn.Sequential(
            nn.Linear(SINUSOID_SIZE, EMBEDDING_SIZE), nn.GELU(), nn.Linear(EMBEDDING_SIZE, EMBEDDING_SIZE)
        )
        self.label_embedding = nn.Embedding(config.num_classes, EMBEDDING_SIZE)
        self.stem = nn.Conv2d(3, stem, 7, padding=3)
        self.down_full = Stage(stem, full)
        self.shrink_full = nn.Conv2d(full, full, 4, stride=2, padding=1, bias=False)
        self.down_half = Stage(full, half)
        self.shrink_half = nn.Conv2d(half, half, 4, stride=2, padding=1, bias=False)
        self.down_quarter = Stage(half, quarter)
        self.middle_block = Block(quarter, quarter)
        self.middle_attention = FullAttention(quarter)
        self.up_quarter = Stage(2 * quarter, half)
        self.grow_half = nn.ConvTranspose2d(half, half, 4, stride=2, padding=1, bias=False)
        self.up_half = Stage(2 * half, full)
        self.grow_full = nn.ConvTranspose2d(full, full, 4, stride=2, padding=1, bias=False)
        self.final_block = Block(full, full, embedded=False)
        self.head = nn.Conv2d(full, 3, 1)

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predicted noise (B, 3, S, S).

        images: (B, 3, S, S) float, noised;  timesteps: (B,) int64 in [0, T);  labels: (B,) int64, -1 or None for no
        label, which adds nothing to the embedding.
        """
        times = self.time_embedding(sinusoid(timesteps, SINUSOID_SIZE, spacings=SINUSOID_SIZE // 2 - 1))
        embedding = F.gelu(times + embed_labels(self.label_embedding, labels, timesteps))
        full = self.down_full(self.stem(images), embedding)
        half = self.down_half(self.shrink_full(full), embedding)
        quarter = self.down_quarter(self.shrink_half(half), embedding)
        features = self.middle_attention(self.middle_block(quarter, embedding))
        features = self.grow_half(self.up_quarter(torch.cat([features, quarter], dim=1), embedding))
        features = self.grow_full(self.up_half(torch.cat([features, half], dim=1), embedding))
        # As in the code that the paper cites, nothing reads the full-size skip.
        noise: Tensor = self.head(self.final_block(features))
        return noise


class Stage(nn.Module):
    """Two blocks and linear attention at one resolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.block1 = Block(channels_in, channels_out)
        self.block2 = Block(channels_out, channels_out)
        self.attention = LinearAttention(channels_out)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels_out, H, W) of features (B, channels_in, H, W) and embedding (B, 128)."""
        features = self.block2(self.block1(features, embedding), embedding)
        attended: Tensor = self.attention(features)
        return attended


class Block(nn.Module):
    """ConvNeXt block (Liu et al. 2022) with separable convolutions and, if `embedded`, a shift from the embedding."""

    def __init__(self, channels_in: int, channels_out: int, *, embedded: bool = True) -> None:
        super().__init__()
        hidden = 2 * channels_out
        self.depthwise = nn.Conv2d(channels_in, channels_in, 7, padding=3, groups=channels_in)
        self.shift = nn.Linear(EMBEDDING_SIZE, channels_in) if embedded else None
        self.body = nn.Sequential(
            _norm(channels_in),
            DepthwiseSeparable(channels_in, hidden),
            nn.GELU(),
            _norm(hidden),
            DepthwiseSeparable(hidden, channels_out),
        )
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, features: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, channels_out, H, W) of features (B, channels_in, H, W) and, if embedded, embedding (B, 128)."""
        hidden = self.depthwise(features)
        if self.shift is not None:
            hidden = hidden + self.shift(embedding)[:, :, None, None]
        result: Tensor = self.body(hidden) + self.skip(features)
        return result


class LinearAttention(nn.Module):
    """Attention whose cost grows linearly with the pixels (Shen et al. 2021, "Efficient Attention"), residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.project_in = nn.Conv2d(channels, 3 * ATTENTION_SIZE, 1, bias=False)
        self.project_out = nn.Sequential(nn.Conv2d(ATTENTION_SIZE, channels, 1), _norm(channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) of the same."""
        query, key, value = _heads(self.project_in(self.norm(features)))
        query = query.softmax(dim=2) * HEAD_SIZE**-0.5
        context = key.softmax(dim=3) @ value.transpose(2, 3)
        attended = context.transpose(2, 3) @ query
        result: Tensor = features + self.project_out(_merge(attended, features))
        return result


class FullAttention(nn.Module):
    """Ordinary softmax attention between all pixels (Vaswani et al. 2017), residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.project_in = nn.Conv2d(channels, 3 * ATTENTION_SIZE, 1, bias=False)
        self.project_out = nn.Conv2d(ATTENTION_SIZE, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) of the same."""
        query, key, value = (part.transpose(2, 3) for part in _heads(self.project_in(self.norm(features))))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(2, 3)
        result: Tensor = features + self.project_out(_merge(attended, features))
        return result


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


def _heads(projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each (B, heads, head size, H * W), of (B, 3 * 128, H, W)."""
    query, key, value = projected.reshape(len(projected), 3, HEADS, HEAD_SIZE, -1).unbind(dim=1)
    return query, key, value


def _merge(attended: Tensor, like: Tensor) -> Tensor:
    """(B, 128, H, W) of (B, heads, head size, H * W), with the height and width of `like`."""
    return attended.reshape(len(like), ATTENTION_SIZE, *like.shape[2:])
