"""Augments a whole batch at once: per-image parameters are drawn first, for the global batch, and then applied.

The stages are those of `AugmentConfig`, in its order. Each does what the torchvision transform of the same name does
with the same parameters (tests/unit/test_augment.py compares them), except that

- crop, flip, rotation, scale, shear and shift are one affine map, and that and the elastic deformation one look-up, so
  pixels are interpolated once. Where crop and
  rotation (or zoom, shear, shift) meet, what is moved in from outside the crop are real pixels of the image as far as
  it reaches, not the black border that a crop in torchvision would have left there. The padding lies around the image;
- brightness, contrast, saturation and hue are one 3x3 matrix and one offset per image, always in that order, and values
  are clamped to [0, 1] once, at the end, not after each of the four;
- hue turns the colour about the grey axis (Rodrigues' rotation). The hue of HSV approximates exactly this angle by the
  position on a hexagon, so the two agree on average, and at multiples of 120 degrees; the rotation keeps R + G + B
  where HSV keeps the largest of the three;
- an erased rectangle that does not fit is clipped to the side of the image, not drawn again;
- nothing is rounded to whole grey levels in between.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hpcvision.config.data import AugmentConfig

# Rec. 601 luma. torchvision rounds the first to 0.2989; these add up to 1, so grey stays exactly grey.
GREY = (0.299, 0.587, 0.114)
# Height by width of an erased rectangle, log-uniform: torchvision's RandomErasing.
ERASING_ASPECT = (0.3, 3.3)
# Of an image: crop y, x; flip; brightness, contrast, saturation, hue; blur or not, sigma; erase or not, area, aspect,
# top, left. Of each of its channels: rotation, scale, shift x, shift y, shear; behind them, if elastic, x, y at knots.
UNIFORMS_PER_IMAGE = 14
UNIFORMS_PER_CHANNEL = 5
KNOTS = 6


class Parameters(NamedTuple):
    """What happens to each of B images; G is the number of channels with `per_channel`, else 1. Signs as torchvision's.

    An operation that is off has its neutral value.
    """

    crop_y: Tensor
    """(B,) int64: row of the image in which the crop begins, -crop_padding..crop_padding."""
    crop_x: Tensor
    """(B,) int64: column of the image in which the crop begins, -crop_padding..crop_padding."""
    flip: Tensor
    """(B,) bool."""
    rotation: Tensor
    """(B, G) float32: degrees, clockwise (as in torchvision's `affine`; its `rotate` counts the other way)."""
    scale: Tensor
    """(B, G) float32: above 1 enlarges."""
    shift_x: Tensor
    """(B, G) float32: pixels to the right."""
    shift_y: Tensor
    """(B, G) float32: pixels down."""
    shear: Tensor
    """(B, G) float32: pixels of x to the left per pixel of y down, the tangent of torchvision's angle."""
    knots: Tensor
    """(B, G, 2, 6, 6) float32: pixels right and down from where the content comes, at knots from border to border."""
    brightness: Tensor
    """(B,) float32 factor."""
    contrast: Tensor
    """(B,) float32 factor."""
    saturation: Tensor
    """(B,) float32 factor."""
    hue: Tensor
    """(B,) float32: fraction of a full turn, from red towards green."""
    blur_sigma: Tensor
    """(B,) float32: pixels; 0 is not blurred."""
    erase_top: Tensor
    """(B,) int64."""
    erase_left: Tensor
    """(B,) int64."""
    erase_height: Tensor
    """(B,) int64; 0 is not erased."""
    erase_width: Tensor
    """(B,) int64."""


def uniforms(config: AugmentConfig, batch: int, channels: int, generator: torch.Generator) -> Tensor:
    """(batch, columns) float32 in [0, 1): all random numbers for `batch` images, on the generator's device.

    Turning an operation on or off, or `per_channel`, leaves every other operation's numbers as they were.
    """
    columns = UNIFORMS_PER_IMAGE + UNIFORMS_PER_CHANNEL * channels
    drawn = torch.rand(batch, columns, generator=generator, device=generator.device)
    knots = channels * 2 * KNOTS**2 if config.elastic_pixels else 0
    return torch.cat((drawn, torch.rand(batch, knots, generator=generator, device=generator.device)), 1)


def parameters_of(config: AugmentConfig, uniform: Tensor, image_size: int) -> Parameters:
    """What happens to images of `image_size` x `image_size` pixels, by the rows of `uniforms`, on their device."""
    batch = len(uniform)
    knots_per_channel = 2 * KNOTS**2 if config.elastic_pixels else 0
    channels = (uniform.shape[1] - UNIFORMS_PER_IMAGE) // (UNIFORMS_PER_CHANNEL + knots_per_channel)
    (
        crop_y, crop_x, flip, brightness, contrast, saturation, hue,
        blurred, sigma, erased, area, aspect, top, left,
    ) = uniform[:, :UNIFORMS_PER_IMAGE].unbind(1)  # fmt: skip
    groups = channels if config.per_channel else 1
    end = UNIFORMS_PER_IMAGE + UNIFORMS_PER_CHANNEL * channels
    affine = uniform[:, UNIFORMS_PER_IMAGE:end].view(batch, UNIFORMS_PER_CHANNEL, channels)
    rotation, scale, shift_x, shift_y, shear = affine[:, :, :groups].unbind(1)
    knots = uniform[:, end:] if config.elastic_pixels else uniform.new_full((batch, channels * 2 * KNOTS**2), 0.5)
    knots = knots.view(batch, channels, 2, KNOTS, KNOTS)[:, :groups]

    # The largest float32 u below 1 is 1 - 2^-24, so u * n never rounds up to a whole n: truncation gives 0..n-1.
    offsets = 2 * config.crop_padding + 1
    height, width = _erased_sides(config, area, aspect, image_size)
    height = height * (erased < config.erasing_probability)
    return Parameters(
        crop_y=(crop_y * offsets).long() - config.crop_padding,
        crop_x=(crop_x * offsets).long() - config.crop_padding,
        flip=flip < (0.5 if config.flip else 0.0),
        rotation=_between(-config.rotation_degrees, config.rotation_degrees, rotation),
        scale=_between(1 - config.scale, 1 + config.scale, scale),
        shift_x=_between(-config.shift_pixels, config.shift_pixels, shift_x),
        shift_y=_between(-config.shift_pixels, config.shift_pixels, shift_y),
        shear=_between(-config.shear, config.shear, shear),
        knots=_between(-config.elastic_pixels, config.elastic_pixels, knots),
        brightness=_between(1 - config.brightness, 1 + config.brightness, brightness),
        contrast=_between(1 - config.contrast, 1 + config.contrast, contrast),
        saturation=_between(1 - config.saturation, 1 + config.saturation, saturation),
        hue=_between(-config.hue, config.hue, hue),
        blur_sigma=_between(*config.blur_sigma, sigma) * (blurred < config.blur_probability),
        erase_top=(top * (image_size - height + 1)).long(),
        erase_left=(left * (image_size - width + 1)).long(),
        erase_height=height,
        erase_width=width,
    )


def draw(config: AugmentConfig, batch: int, image_size: int, channels: int, generator: torch.Generator) -> Parameters:
    """Parameters for `batch` images of `image_size` x `image_size` pixels, on the generator's device."""
    return parameters_of(config, uniforms(config, batch, channels, generator), image_size)


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    return uniform * (high - low) + low


def _erased_sides(config: AugmentConfig, area: Tensor, aspect: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """(B,) int64 height and width of the erased rectangles, 1..image_size, of uniform numbers for area and aspect."""
    pixels = _between(*config.erasing_area, area) * image_size**2
    ratio = _between(math.log(ERASING_ASPECT[0]), math.log(ERASING_ASPECT[1]), aspect).exp()
    height, width = ((pixels * r).sqrt().round().long().clamp(1, image_size) for r in (ratio, 1 / ratio))
    return height, width


def augment(
    images: Tensor, parameters: Parameters, config: AugmentConfig, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Augmented and normalised images, (B, 3, H, W) float32; a stage that `config` turns off costs nothing.

    images: (B, 3, H, W) uint8, on the device of the parameters;  mean, std: of each channel, on the scale 0..1.
    """
    # Measured with benchmarks/augment.py (draw included), 512 images of 32x32, torch 2.15, one thread of a shared Xeon:
    # 22,000 to 40,000 images/s with everything on (by load of the machine), 21,000 to 28,000 with per_channel as well.
    moved = config.rotation_degrees or config.scale or config.shift_pixels or config.shear or config.elastic_pixels
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if moved or config.crop_padding or config.flip:
        pixels = _resample(pixels, parameters, config, whole_pixels=not moved)
    if config.brightness or config.contrast or config.saturation or config.hue:
        pixels = _recolour(pixels, parameters, has_contrast=config.contrast > 0)
    if config.blur_probability:
        pixels = _blur(pixels, parameters.blur_sigma)
    pixels = _normalise_in_place(pixels, mean, std)
    if config.erasing_probability:
        pixels.masked_fill_(_erased(pixels, parameters), 0)
    return pixels


def normalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images as the model reads them, (B, 3, H, W) float32 with mean 0 and deviation 1 in each channel of the data set.

    images: (B, 3, H, W) uint8;  mean, std: of each channel, on the scale 0..1.
    """
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return _normalise_in_place(pixels, mean, std)


def _normalise_in_place(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    # Numbers, not a tensor made of them: copying one to the GPU would make the host wait.
    for channel, centre, deviation in zip(pixels.unbind(1), mean, std, strict=True):
        channel.sub_(centre).div_(deviation)
    return pixels


def _resample(pixels: Tensor, parameters: Parameters, config: AugmentConfig, *, whole_pixels: bool) -> Tensor:
    """Crop to elastic deformation in one look-up; `whole_pixels` says that only crop and flip are on.

    `_source` gives coordinates in which -1 and 1 are the centres of the outer pixels (align_corners). In these,
    grid_sample's reflection repeats no border pixel, exactly as reflect padding does.
    """
    batch, channels, height, width = pixels.shape
    groups = 1 if whole_pixels else parameters.rotation.shape[1]
    grid = _source(parameters, groups=groups, height=height, width=width, elastic=config.elastic_pixels > 0)
    sampled = F.grid_sample(
        pixels.view(batch * groups, channels // groups, height, width),
        grid,
        # Nearest copies pixels exactly, where the rounding of the coordinates would blend in 1e-6 of a neighbour.
        mode="nearest" if whole_pixels else "bilinear",
        padding_mode=config.padding_mode,
        align_corners=True,
    )
    return sampled.view(batch, channels, height, width)


def _source(parameters: Parameters, *, groups: int, height: int, width: int, elastic: bool) -> Tensor:
    """Where every pixel of the result comes from: (B * groups, H, W, 2) float32 of (x, y) in grid_sample's units.

    With coordinates p relative to the centre of the image, the result shows at p what lies at
    Flip A^-1 (p + d(p) - shift) + crop, where A = scale * Rotation * Shear as in torchvision's `affine`, d is elastic.
    """
    device = parameters.rotation.device
    moves = (parameters.rotation, parameters.scale, parameters.shift_x, parameters.shift_y, parameters.shear)
    rotation, scale, shift_x, shift_y, shear = (values[:, :groups] for values in moves)
    angle = torch.deg2rad(rotation)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    mirror = 1 - 2 * parameters.flip.float()[:, None]
    x_from_x, x_from_y = (cosine - shear * sine) * mirror, (sine + shear * cosine) * mirror
    y_from_x, y_from_y = -sine, cosine
    x_from_1 = parameters.crop_x[:, None] - x_from_x * shift_x - x_from_y * shift_y
    y_from_1 = parameters.crop_y[:, None] - y_from_x * shift_x - y_from_y * shift_y

    # Sums and products, not affine_grid: its matrix product would round to 10 bits under TF32 or 8 under autocast,
    # and move pixels. The x and the y plane are kept apart in memory, which is as fast for grid_sample.
    half_width, half_height = (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=device) - half_width
    y = torch.arange(height, device=device)[:, None] - half_height
    if elastic:
        shifts = F.interpolate(parameters.knots.flatten(0, 1), (height, width), mode="bicubic", align_corners=True)
        x, y = x + shifts[:, :1], y + shifts[:, 1:]
    from_x = torch.stack((x_from_x / half_width, y_from_x / half_height), dim=2).view(-1, 2, 1, 1)
    from_y = torch.stack((x_from_y / half_width, y_from_y / half_height), dim=2).view(-1, 2, 1, 1)
    from_1 = torch.stack((x_from_1 / half_width, y_from_1 / half_height), dim=2).view(-1, 2, 1, 1)
    return (from_x * x + (from_y * y + from_1)).permute(0, 2, 3, 1)


def _recolour(pixels: Tensor, parameters: Parameters, *, has_contrast: bool) -> Tensor:
    """Brightness b, contrast c, saturation s and hue H, clamped to [0, 1].

    One after the other they are x -> bx -> cx + (1-c) m -> sx + (1-s) gx -> Hx, where m is the image's mean grey after
    the first and g x is the grey of each pixel. H and g leave grey alone, so all four are
    bc (sH + (1-s) g) x + b (1-c) m0, with m0 the mean grey of the original.
    """
    brightness, contrast, saturation = (
        values[:, None, None] for values in (parameters.brightness, parameters.contrast, parameters.saturation)
    )
    grey = torch.cat([torch.full((1,), weight, device=pixels.device) for weight in GREY])
    hue = _turn_about_grey(parameters.hue)
    matrix = brightness * contrast * (saturation * hue + (1 - saturation) * grey)
    offset = torch.zeros_like(brightness)
    if has_contrast:
        mean_grey = (pixels.mean((2, 3)) * grey).sum(1)
        offset = brightness * (1 - contrast) * mean_grey[:, None, None]

    # Three multiply-adds, not a matrix product, which TF32 and autocast would round.
    result = offset[:, :, :, None]
    for channel in range(3):
        result = torch.addcmul(result, matrix[:, :, channel, None, None], pixels[:, channel : channel + 1])
    return result.clamp_(0, 1)


def _turn_about_grey(turns: Tensor) -> Tensor:
    """(B, 3, 3) rotations of RGB about (1, 1, 1), red towards green, by (B,) fractions of a full turn (Rodrigues)."""
    angle = turns[:, None, None] * (2 * math.pi)
    cosine, sine = angle.cos(), angle.sin()
    same = torch.eye(3, device=turns.device)
    following = same.roll(1, dims=0)  # red to green, green to blue, blue to red
    return cosine * same + (1 - cosine) / 3 + sine / math.sqrt(3) * (following - following.T)


def _blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """3x3 Gaussian blur with reflect padding; sigma: (B,), 0 leaves the image as it is (exp(-1/0) is 0)."""
    edge = torch.exp(-0.5 / sigma.square())[:, None, None, None]
    centre, side = 1 / (1 + 2 * edge), edge / (1 + 2 * edge)
    # Shifted sums: as a convolution this would have a filter, and so a group, per image and channel.
    padded = F.pad(pixels, (1, 1, 1, 1), mode="reflect")
    rows = (padded[:, :, :-2] + padded[:, :, 2:]).mul_(side).addcmul_(padded[:, :, 1:-1], centre)
    return (rows[..., :-2] + rows[..., 2:]).mul_(side).addcmul_(rows[..., 1:-1], centre)


def _erased(pixels: Tensor, parameters: Parameters) -> Tensor:
    """(B, 1, H, W) bool: inside the erased rectangle."""
    top, left, height, width = (
        values[:, None]
        for values in (
            parameters.erase_top, parameters.erase_left, parameters.erase_height, parameters.erase_width
        )
    )  # fmt: skip
    row = torch.arange(pixels.shape[2], device=pixels.device) - top
    column = torch.arange(pixels.shape[3], device=pixels.device) - left
    inside_rows, inside_columns = (row >= 0) & (row < height), (column >= 0) & (column < width)
    return inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
