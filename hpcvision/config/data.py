"""The configuration of the images: which, how they are varied, and which of them are held out."""

from typing import Literal, Self

from pydantic import Field, model_validator

from hpcvision.config.frozen import Frozen

# (side in pixels, classes) of the images of a source; `synthetic` draws whichever of its own the model reads.
SOURCE_SHAPES = {"cifar100": (32, 100), "addnist": (28, 20)}
SYNTHETIC_SHAPES = [*SOURCE_SHAPES.values(), (16, 10)]


class AugmentConfig(Frozen):
    """Batched augmentation, in this order, with parameters of its own for every image; 0 turns an operation off."""

    crop_padding: int = Field(0, ge=0)
    """Random crop: pad every side by this many pixels, cut back at a random whole-pixel offset."""
    padding_mode: Literal["zeros", "reflection"] = "zeros"
    """What lies outside the image for crop, rotation, scale, shift and shear."""
    flip: bool = False
    """Mirror half of the images left to right."""
    rotation_degrees: float = Field(0.0, ge=0, le=180)
    """Rotation, uniform in +- this many degrees."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Zoom, uniform in 1 +- this."""
    shift_pixels: float = Field(0.0, ge=0)
    """Sub-pixel shift along each axis, uniform in +- this many pixels."""
    shear: float = Field(0.0, ge=0, lt=1)
    """Horizontal shear, uniform in +- this (pixels of x per pixel of y)."""
    elastic_pixels: float = Field(0.0, ge=0)
    """Elastic deformation: pixels along each axis, uniform in +- this at 6x6 knots and bicubic in between."""
    per_channel: bool = False
    """Every colour channel draws its own rotation, scale, shift, shear and deformation (AddNIST: one digit each)."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Brightness factor, uniform in 1 +- this."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Contrast factor, uniform in 1 +- this."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Saturation factor, uniform in 1 +- this."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Hue shift, uniform in +- this fraction of a full turn."""
    blur_probability: float = Field(0.0, ge=0, le=1)
    """Share of the images that a 3x3 Gaussian blurs."""
    blur_sigma: tuple[float, float] = (0.1, 1.0)
    """Standard deviation of the blur, uniform between these, pixels."""
    erasing_probability: float = Field(0.0, ge=0, le=1)
    """Share of the images in which a rectangle is set to the data set's mean colour, after normalisation."""
    erasing_area: tuple[float, float] = (0.02, 0.33)
    """Area of the erased rectangle, uniform between these fractions of the image."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name in ("blur_sigma", "erasing_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"data.augmentation.{name}={low},{high} must be two increasing numbers above 0")
        return self


class DataConfig(Frozen):
    """Which images, how they are varied, and which of them are held out."""

    source: Literal["cifar100", "addnist", "synthetic"] = "cifar100"
    """`synthetic` is drawn by hpcvision itself, needs no download, and takes the shape that the model reads."""
    augmentation: AugmentConfig = AugmentConfig()
    """Applied to training images only."""
    train_on: Literal["train", "train+validation"] = "train"
    """`train+validation` trains on the held-out images too, for a final run whose settings are already chosen."""
    validation_seed: int = 0
    """Which CIFAR-100 training images are cut off for validation; AddNIST has its own validation file."""
