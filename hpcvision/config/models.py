"""The configuration of every model, tagged by `kind`; `width` scales every channel and width 1 is the paper's."""

from typing import Annotated, Literal

from pydantic import Field

from hpcvision.config.frozen import Frozen


class BabyMobileNetConfig(Frozen):
    """Baby MobileNet of paper A: 97,584 parameters at width 1."""

    kind: Literal["baby_mobilenet"] = "baby_mobilenet"
    width: float = Field(1.0, gt=0)
    """Factor on every channel count."""
    image_size: int = Field(32, ge=4)
    """Side of the square input, pixels."""
    num_classes: int = Field(100, ge=2)
    """Number of logits."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel-pixel is dropped after the second max-pool; the paper does not give it."""


class AddNISTCNNConfig(Frozen):
    """The AddNIST network of paper B: 98,740 parameters at width 1."""

    kind: Literal["addnist_cnn"] = "addnist_cnn"
    width: float = Field(1.0, gt=0)
    """Factor on every channel count and on the hidden linear layer."""
    image_size: int = Field(28, ge=8)
    """Side of the square input, pixels."""
    num_classes: int = Field(20, ge=2)
    """Number of logits."""


class DigitSumConfig(Frozen):
    """Three readers that vote on each channel's digit, and the exact distribution of the sum: 97,764 parameters."""

    kind: Literal["digit_sum"] = "digit_sum"
    width: float = Field(1.0, gt=0)
    """Factor on every channel count."""
    image_size: int = Field(28, ge=21)
    """Side of the square input, pixels."""
    num_classes: int = Field(20, ge=20, le=20)
    """The sums 1 to 20."""


class GroupedCNNConfig(Frozen):
    """A plain network for AddNIST that keeps the channels apart until its head: 97,484 parameters at width 1."""

    kind: Literal["grouped_cnn"] = "grouped_cnn"
    width: float = Field(1.0, gt=0)
    """Factor on the channel counts of each group, rounded to multiples of 8; the hidden layer keeps its size."""
    image_size: int = Field(28, ge=8)
    """Side of the square input, pixels."""
    num_classes: int = Field(20, ge=2)
    """Number of logits."""


class CompactNetConfig(Frozen):
    """A residual classifier whose blocks run several times with the same filters: 98,876 parameters."""

    kind: Literal["compact_net"] = "compact_net"
    width: float = Field(1.0, gt=0)
    """Factor on every channel count."""
    image_size: int = Field(32, ge=4)
    """Side of the square input, pixels."""
    num_classes: int = Field(100, ge=2)
    """Number of logits."""
    blocks: int = Field(7, ge=1)
    """Number of residual blocks."""
    passes: int = Field(2, ge=1)
    """How often every block runs, with norms of each pass's own."""


class ConvNextUNetConfig(Frozen):
    """The ConvNeXt U-Net of paper A: 960,223 parameters at width 1."""

    kind: Literal["convnext_unet"] = "convnext_unet"
    width: float = Field(1.0, gt=0)
    """Factor on every channel count of the trunk; the time embedding keeps its size."""
    image_size: int = Field(32, ge=4, multiple_of=4)
    """Side of the square image, pixels."""
    num_classes: int = Field(100, ge=2)
    """Number of class labels."""


class ResidualUNetConfig(Frozen):
    """The residual U-Net of paper B: 948,856 parameters at width 1."""

    kind: Literal["residual_unet"] = "residual_unet"
    width: float = Field(1.0, gt=0)
    """Factor on every channel count, each rounded to a multiple of 8, at least 8; the embedding keeps its size."""
    image_size: int = Field(32, ge=4, multiple_of=4)
    """Side of the square image, pixels."""
    num_classes: int = Field(100, ge=2)
    """Number of class labels."""


class EDMUNetConfig(Frozen):
    """A residual U-Net whose blocks run several times, made to beat the papers' two under the same cap."""

    kind: Literal["edm_unet"] = "edm_unet"
    width: float = Field(1.0, gt=0)
    """Factor on every channel count, each rounded to a multiple of 8, at least 8; the embedding keeps its size."""
    image_size: int = Field(32, ge=4, multiple_of=4)
    """Side of the square image, pixels."""
    num_classes: int = Field(100, ge=2)
    """Number of class labels."""
    passes: int = Field(2, ge=1)
    """How often every block runs, with norms, modulation and gain of each pass's own."""


DenoiserConfig = ConvNextUNetConfig | ResidualUNetConfig | EDMUNetConfig
ModelConfig = Annotated[
    BabyMobileNetConfig | AddNISTCNNConfig | DigitSumConfig | GroupedCNNConfig | CompactNetConfig | DenoiserConfig,
    Field(discriminator="kind"),
]
MODEL_CONFIGS = (
    BabyMobileNetConfig,
    AddNISTCNNConfig,
    DigitSumConfig,
    GroupedCNNConfig,
    CompactNetConfig,
    ConvNextUNetConfig,
    ResidualUNetConfig,
    EDMUNetConfig,
)
