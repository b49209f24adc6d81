"""Batched augmentation gives, image by image, what torchvision gives with the same parameters."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torchvision.transforms import InterpolationMode

from hpcvision.config.data import AugmentConfig
from hpcvision.data.augment import Parameters, augment, draw, normalise, parameters_of, uniforms
from hpcvision.seeding import generator

BATCH, SIZE = 8, 32
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
GREY_LEVEL = 1 / 255
COLOUR = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
AFFINE = AugmentConfig(rotation_degrees=30, scale=0.2, shift_pixels=3, shear=0.3)
EVERYTHING = AugmentConfig(
    **AFFINE.model_dump(exclude_defaults=True),
    **COLOUR.model_dump(exclude_defaults=True),
    crop_padding=4,
    flip=True,
    elastic_pixels=2,
    blur_probability=0.5,
    erasing_probability=0.5,
)


def random_images(low: int = 0, high: int = 256, batch: int = BATCH) -> Tensor:
    return torch.randint(low, high, (batch, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator(0, "test images"))


def drawn(config: AugmentConfig, batch: int = BATCH, seed: int = 0) -> Parameters:
    return draw(config, batch, SIZE, 3, generator(seed, "augment"))


def plain(images: Tensor, parameters: Parameters, config: AugmentConfig) -> Tensor:
    """Augmented images on the scale 0..1."""
    return augment(images, parameters, config, mean=(0, 0, 0), std=(1, 1, 1))


def unit(images: Tensor) -> Tensor:
    """uint8 images on the scale 0..1."""
    return images.float() / 255


def affine(image: Tensor, parameters: Parameters, index: int, group: int) -> Tensor:
    """torchvision's affine map of one image (or channel) with the parameters of image `index`."""
    p = parameters
    return tv.affine(
        image[None],
        angle=p.rotation[index, group].item(),
        translate=[p.shift_x[index, group].item(), p.shift_y[index, group].item()],
        scale=p.scale[index, group].item(),
        shear=[math.degrees(math.atan(p.shear[index, group].item())), 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )[0]


def crop(image: Tensor, parameters: Parameters, index: int, padding: int, mode: str) -> Tensor:
    padded = tv.pad(image, [padding] * 4, padding_mode=mode)
    top, left = (int(offset[index]) + padding for offset in (parameters.crop_y, parameters.crop_x))
    return tv.crop(padded, top, left, SIZE, SIZE)


def hue_degrees(pixels: Tensor) -> Tensor:
    """HSV hue angle of (B, 3, H, W)."""
    red, green, blue = pixels.unbind(1)
    largest, spread = pixels.amax(1), pixels.amax(1) - pixels.amin(1)
    sixth = torch.where(
        largest == red,
        (green - blue) / spread,
        torch.where(largest == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    return sixth * 60


def turn(degrees: Tensor) -> Tensor:
    """The same angle in -180..180."""
    return (degrees + 180) % 360 - 180


def test_without_operations_augment_is_normalise():
    images, config = random_images(), AugmentConfig()
    result = augment(images, drawn(config), config, mean=MEAN, std=STD)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, normalise(images, mean=MEAN, std=STD), rtol=0, atol=0)


def test_normalise_equals_torchvision():
    images = random_images()
    expected = tv.normalize(unit(images), list(MEAN), list(STD))
    torch.testing.assert_close(normalise(images, mean=MEAN, std=STD), expected, rtol=0, atol=1e-6)


def test_normalise_leaves_its_input_alone():
    images = random_images()
    before = images.clone()
    normalise(images, mean=MEAN, std=STD)
    augment(images, drawn(EVERYTHING), EVERYTHING, mean=MEAN, std=STD)
    assert torch.equal(images, before)


def test_a_stage_that_the_config_turns_off_is_not_run():
    images = random_images()
    result = augment(images, drawn(EVERYTHING), AugmentConfig(), mean=MEAN, std=STD)
    torch.testing.assert_close(result, normalise(images, mean=MEAN, std=STD), rtol=0, atol=0)


@pytest.mark.parametrize("mode, torchvision_mode", [("zeros", "constant"), ("reflection", "reflect")])
@pytest.mark.parametrize("padding", [1, 4, 12])
def test_crop_is_exactly_pad_and_crop(padding, mode, torchvision_mode):
    config = AugmentConfig(crop_padding=padding, padding_mode=mode)
    images, parameters = random_images(batch=32), drawn(config, batch=32)
    expected = [crop(image, parameters, i, padding, torchvision_mode) for i, image in enumerate(unit(images))]
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=0)


def test_whole_pixel_crop_stays_exact_when_the_affine_stage_runs_too():
    config = AugmentConfig(crop_padding=4, padding_mode="reflection", rotation_degrees=10)
    images, parameters = random_images(), drawn(config)
    parameters = parameters._replace(rotation=torch.zeros(BATCH, 1))
    expected = [crop(image, parameters, i, 4, "reflect") for i, image in enumerate(unit(images))]
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=1e-5)


def test_flip_mirrors_exactly_the_drawn_images():
    config = AugmentConfig(flip=True)
    images, parameters = random_images(), drawn(config)
    assert 0 < parameters.flip.sum() < BATCH
    expected = torch.where(parameters.flip[:, None, None, None], tv.horizontal_flip(unit(images)), unit(images))
    torch.testing.assert_close(plain(images, parameters, config), expected, rtol=0, atol=0)


def test_crop_comes_before_flip():
    config = AugmentConfig(crop_padding=4, flip=True)
    images, parameters = random_images(), drawn(config)
    expected = [crop(image, parameters, i, 4, "constant") for i, image in enumerate(unit(images))]
    expected = [tv.horizontal_flip(x) if flip else x for x, flip in zip(expected, parameters.flip, strict=True)]
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=0)


def test_rotation_equals_torchvision_rotate_counted_clockwise():
    config = AugmentConfig(rotation_degrees=180)
    images, parameters = random_images(), drawn(config)
    expected = [
        tv.rotate(image, -angle.item(), interpolation=InterpolationMode.BILINEAR)
        for image, angle in zip(unit(images), parameters.rotation[:, 0], strict=True)
    ]
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=GREY_LEVEL)


def test_what_is_rotated_in_is_the_reflected_image():
    config = AugmentConfig(rotation_degrees=45, padding_mode="reflection")
    images, parameters = random_images(), drawn(config)
    expected = [
        tv.center_crop(affine(tv.pad(image, [16] * 4, padding_mode="reflect"), parameters, i, 0), [SIZE, SIZE])
        for i, image in enumerate(unit(images))
    ]
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=GREY_LEVEL)


@pytest.mark.parametrize(
    "config", [AFFINE, AugmentConfig(scale=0.3), AugmentConfig(shift_pixels=5), AugmentConfig(shear=0.5)]
)
def test_scale_shift_and_shear_equal_torchvision_affine(config):
    images, parameters = random_images(), drawn(config)
    expected = [affine(image, parameters, i, 0) for i, image in enumerate(unit(images))]
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=GREY_LEVEL)


def test_flip_comes_before_the_affine_map():
    config = AFFINE.model_copy(update={"flip": True})
    images, parameters = random_images(), drawn(config)
    flipped = torch.where(parameters.flip[:, None, None, None], tv.horizontal_flip(unit(images)), unit(images))
    expected = [affine(image, parameters, i, 0) for i, image in enumerate(flipped)]
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=GREY_LEVEL)


@pytest.mark.parametrize("per_channel", [False, True])
def test_elastic_deformation_comes_after_flip_and_equals_torchvision_elastic_by_the_same_shifts(per_channel):
    config = AugmentConfig(flip=True, elastic_pixels=3, per_channel=per_channel)
    images, parameters = random_images(), drawn(config)
    result = plain(images, parameters, config)
    for index in range(BATCH):
        for channel in range(3):
            knots = parameters.knots[index, channel if per_channel else 0]
            shifts = torch.nn.functional.interpolate(knots[None], (SIZE, SIZE), mode="bicubic", align_corners=True)
            image = unit(images)[index, channel][None]
            image = tv.horizontal_flip(image) if parameters.flip[index] else image
            expected = tv.elastic(image, shifts.permute(0, 2, 3, 1) * 2 / SIZE)  # half the side is 1
            torch.testing.assert_close(result[index, channel], expected[0], rtol=0, atol=1e-4)


def test_an_image_moves_as_far_at_a_knot_as_drawn_there():
    # A ramp of one grey level per pixel: what is seen at a place tells where it comes from.
    config = AugmentConfig(elastic_pixels=2, padding_mode="reflection")
    ramp = torch.arange(0, 26, dtype=torch.uint8).expand(BATCH, 3, 26, 26)
    parameters = draw(config, BATCH, 26, 3, generator(0, "augment"))
    seen = plain(ramp, parameters, config) * 255 - ramp
    inner = slice(5, 25, 5)  # six knots on 26 pixels: five pixels apart
    expected = parameters.knots[:, :, 0, 1:5, 1:5].expand(-1, 3, -1, -1)
    torch.testing.assert_close(seen[:, :, inner, inner], expected, rtol=0, atol=1e-3)


def test_knots_are_uniform_in_their_range():
    values = drawn(EVERYTHING, batch=400).knots.flatten()
    assert abs(torch.histc(values, 10, -2, 2) / len(values) - 0.1).max() < 0.01  # 5.7 standard deviations
    assert -2 <= values.min() < -1.99
    assert 1.99 < values.max() <= 2


def test_per_channel_equals_torchvision_affine_on_each_channel():
    config = AFFINE.model_copy(update={"per_channel": True})
    images, parameters = random_images(), drawn(config)
    assert parameters.rotation.shape == (BATCH, 3)
    expected = [
        torch.cat([affine(image[c : c + 1], parameters, i, c) for c in range(3)])
        for i, image in enumerate(unit(images))
    ]
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=GREY_LEVEL)


def test_per_channel_moves_one_channel_and_leaves_the_others():
    config = AugmentConfig(rotation_degrees=90, per_channel=True)
    images, parameters = random_images(), drawn(config)
    parameters = parameters._replace(rotation=torch.tensor([[0.0, 90.0, 0.0]]).expand(BATCH, 3))
    expected = unit(images)
    expected[:, 1] = expected[:, 1].rot90(-1, (1, 2))
    torch.testing.assert_close(plain(images, parameters, config), expected, rtol=0, atol=1e-5)


def test_crop_and_rotation_agree_with_torchvision_wherever_the_crop_shows_real_pixels():
    config = AugmentConfig(crop_padding=4, rotation_degrees=20)
    images, parameters = random_images(), drawn(config)

    def sequence(pixels: Tensor) -> Tensor:
        cropped = [crop(image, parameters, i, 4, "constant") for i, image in enumerate(pixels)]
        return torch.stack([affine(image, parameters, i, 0) for i, image in enumerate(cropped)])

    real = sequence(torch.ones(BATCH, 3, SIZE, SIZE)) > 0.9999
    difference = (plain(images, parameters, config) - sequence(unit(images))).abs()
    assert real.float().mean() > 0.6
    assert difference[real].max() < GREY_LEVEL
    # The documented difference: real pixels instead of the crop's black border.
    assert difference[~real].max() > 0.5


FACTORS = [0.3, 0.8, 1.0, 1.2, 1.9, 0.0, 0.5, 1.5]


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_operation_equals_torchvision(name):
    config = AugmentConfig(**{name: 1.0})
    images = random_images()
    parameters = drawn(config)._replace(**{name: torch.tensor(FACTORS)})
    adjust = getattr(tv, f"adjust_{name}")
    expected = torch.stack([adjust(image, factor) for image, factor in zip(unit(images), FACTORS, strict=True)])
    torch.testing.assert_close(plain(images, parameters, config), expected, rtol=0, atol=GREY_LEVEL)


def test_colour_operations_follow_one_another_as_in_torchvision():
    config = AugmentConfig(brightness=0.2, contrast=0.3, saturation=0.3)
    # Mid-range images: torchvision clamps after every operation, and here nothing must reach the limits.
    images, parameters = random_images(100, 150), drawn(config)
    expected = []
    for i, image in enumerate(unit(images)):
        for name in ("brightness", "contrast", "saturation"):
            image = getattr(tv, f"adjust_{name}")(image, getattr(parameters, name)[i].item())
        expected.append(image)
    torch.testing.assert_close(plain(images, parameters, config), torch.stack(expected), rtol=0, atol=5e-4)


@pytest.mark.parametrize("turns", [-0.4, -0.1, 0.05, 0.1, 0.25, 0.5])
def test_hue_turns_as_far_and_in_the_same_direction_as_torchvision(turns):
    config = AugmentConfig(hue=0.5)
    # Channels within 90..160 stay inside [0, 1] whatever the rotation, so no clamp changes the angle.
    images = random_images(90, 161)
    parameters = drawn(config)._replace(hue=torch.full((BATCH,), turns))
    before, theirs, ours = (
        hue_degrees(x) for x in (unit(images), tv.adjust_hue(unit(images), turns), plain(images, parameters, config))
    )
    saturated = unit(images).amax(1) - unit(images).amin(1) > 0.1
    assert saturated.float().mean() > 0.5
    assert abs(turn(theirs - before - 360 * turns)[saturated]).max() < 0.1
    difference = turn(ours - theirs)[saturated]
    # The hexagon of HSV and the circle differ by 1.1 degrees at most, at each end of the turn.
    assert abs(difference.mean()) < 0.3
    assert difference.abs().max() < 2.5


def test_a_third_of_a_hue_turn_makes_red_green():
    config = AugmentConfig(hue=0.5)
    images = random_images()
    parameters = drawn(config)._replace(hue=torch.full((BATCH,), 1 / 3))
    expected = unit(images).roll(1, dims=1)
    torch.testing.assert_close(plain(images, parameters, config), expected, rtol=0, atol=1e-5)


def test_colour_leaves_values_between_0_and_1():
    config = AugmentConfig(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    result = plain(random_images(), drawn(config), config)
    assert result.min() == 0
    assert result.max() == 1


def test_blur_equals_torchvision_and_sigma_0_does_nothing():
    config = AugmentConfig(blur_probability=0.5)
    images, parameters = random_images(), drawn(config)
    sigma = parameters.blur_sigma
    assert 0 < (sigma == 0).sum() < BATCH
    expected = [
        tv.gaussian_blur(image, [3, 3], [s.item(), s.item()]) if s > 0 else image
        for image, s in zip(unit(images), sigma, strict=True)
    ]
    result = plain(images, parameters, config)
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=1e-5)
    assert torch.equal(result[sigma == 0], unit(images)[sigma == 0])


def test_erasing_sets_the_drawn_rectangle_to_the_mean_colour():
    config = AugmentConfig(erasing_probability=0.7)
    images, parameters = random_images(), drawn(config)
    assert 0 < (parameters.erase_height == 0).sum() < BATCH
    boxes = zip(*(values.tolist() for values in parameters[-4:]), strict=True)
    mean_colour = torch.tensor(MEAN)[:, None, None]
    erased = [tv.erase(image, *box, v=mean_colour) for image, box in zip(unit(images), boxes, strict=True)]
    expected = tv.normalize(torch.stack(erased), list(MEAN), list(STD))
    result = augment(images, parameters, config, mean=MEAN, std=STD)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_the_stages_follow_one_another_in_the_order_of_the_config():
    config = EVERYTHING.model_copy(update={"crop_padding": 0, "elastic_pixels": 0.0, "hue": 0.0})
    config = config.model_copy(update=dict.fromkeys(("brightness", "contrast", "saturation"), 0.2))
    config = config.model_copy(update={"padding_mode": "reflection"})
    images, parameters = random_images(100, 150), drawn(config)
    expected = []
    for i, image in enumerate(unit(images)):
        image = tv.horizontal_flip(image) if parameters.flip[i] else image
        image = affine(tv.pad(image, [24] * 4, padding_mode="reflect"), parameters, i, 0)
        image = tv.center_crop(image, [SIZE, SIZE])
        for name in ("brightness", "contrast", "saturation"):
            image = getattr(tv, f"adjust_{name}")(image, getattr(parameters, name)[i].item())
        if parameters.blur_sigma[i] > 0:
            image = tv.gaussian_blur(image, [3, 3], [parameters.blur_sigma[i].item()] * 2)
        image = tv.normalize(image, list(MEAN), list(STD))
        expected.append(tv.erase(image, *(int(values[i]) for values in parameters[-4:]), v=torch.zeros(3, 1, 1)))
    result = augment(images, parameters, config, mean=MEAN, std=STD)
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=GREY_LEVEL / min(STD))


def test_no_value_is_read_on_the_host():
    # Meta tensors have no values: reading one, or making a tensor on another device than the images', fails.
    config = EVERYTHING.model_copy(update={"per_channel": True})
    parameters = Parameters(*(values.to("meta") for values in drawn(config)))
    result = augment(random_images().to("meta"), parameters, config, mean=MEAN, std=STD)
    assert result.shape == (BATCH, 3, SIZE, SIZE)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_ranks_slice_of_the_parameters_gives_its_slice_of_the_global_batch(per_channel):
    config = EVERYTHING.model_copy(update={"per_channel": per_channel})
    images, uniform = random_images(batch=12), uniforms(config, 12, 3, generator(0, "augment"))
    whole = augment(images, parameters_of(config, uniform, SIZE), config, mean=MEAN, std=STD)
    parts = [
        augment(images[rows], parameters_of(config, uniform[rows], SIZE), config, mean=MEAN, std=STD)
        for rows in (slice(0, 5), slice(5, 11), slice(11, 12))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


def test_the_same_stream_gives_the_same_images_and_another_gives_others():
    images = random_images()
    once, again, other = (
        augment(images, drawn(EVERYTHING, seed=seed), EVERYTHING, mean=MEAN, std=STD) for seed in (0, 0, 1)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_turning_operations_on_or_off_leaves_the_numbers_of_the_others():
    alone, everything = drawn(AFFINE), drawn(EVERYTHING.model_copy(update={"per_channel": True}))
    assert torch.equal(alone.rotation[:, 0], everything.rotation[:, 0])
    assert torch.equal(alone.shear[:, 0], everything.shear[:, 0])
    assert torch.equal(drawn(COLOUR).hue, everything.hue)
    assert torch.equal(drawn(AugmentConfig(elastic_pixels=2)).knots[:, 0], everything.knots[:, 0])


MANY = 20_000


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("rotation", -30, 30),
        ("scale", 0.8, 1.2),
        ("shift_x", -3, 3),
        ("shift_y", -3, 3),
        ("shear", -0.3, 0.3),
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
        ("crop_y", -4, 4),
        ("crop_x", -4, 4),
    ],
)
def test_parameter_is_uniform_in_its_range(name, low, high):
    values = getattr(drawn(EVERYTHING, batch=MANY), name).double().flatten()
    width = high - low
    assert values.min() >= low - 1e-6
    assert values.max() <= high + 1e-6
    if name.startswith("crop"):
        counts = values.long().add(-low).bincount(minlength=9) / MANY
        assert abs(counts - 1 / 9).max() < 0.01  # 4.5 standard deviations
        return
    # Ten bins of 0.1 each, standard deviation 0.0021.
    assert abs(torch.histc(values, 10, low, high) / MANY - 0.1).max() < 0.01
    assert values.max() - values.min() > 0.999 * width


def test_shares_of_flipped_blurred_and_erased_images_are_as_configured():
    config = AugmentConfig(flip=True, blur_probability=0.2, erasing_probability=0.7)
    parameters = drawn(config, batch=MANY)
    # Standard deviation 0.0035 at most.
    assert parameters.flip.double().mean() == pytest.approx(0.5, abs=0.015)
    assert (parameters.blur_sigma > 0).double().mean() == pytest.approx(0.2, abs=0.015)
    assert (parameters.erase_height > 0).double().mean() == pytest.approx(0.7, abs=0.015)


def test_parameters_of_different_operations_are_independent():
    parameters = drawn(EVERYTHING.model_copy(update={"per_channel": True}), batch=MANY)
    columns = torch.cat([values.double().reshape(MANY, -1) for values in parameters[:-4]], dim=1)
    correlation = torch.corrcoef(columns.T) - torch.eye(columns.shape[1], dtype=torch.double)
    assert correlation.abs().max() < 0.04  # standard deviation 0.007


def test_blur_sigma_is_uniform_between_its_limits():
    config = AugmentConfig(blur_probability=1.0, blur_sigma=(0.5, 2.0))
    sigma = drawn(config, batch=MANY).blur_sigma
    assert 0.5 <= sigma.min() < 0.51
    assert 1.99 < sigma.max() <= 2.0
    assert sigma.mean().item() == pytest.approx(1.25, abs=0.015)


def test_erased_area_and_aspect_follow_the_configuration():
    config = AugmentConfig(erasing_probability=1.0, erasing_area=(0.05, 0.2))
    parameters = drawn(config, batch=MANY)
    height, width = parameters.erase_height.double(), parameters.erase_width.double()
    # Sides are whole pixels, so the area misses by up to half a pixel of each side.
    assert (height * width / SIZE**2).mean().item() == pytest.approx(0.125, abs=0.003)
    assert (height / width).log().mean().item() == pytest.approx(0.5 * math.log(0.3 * 3.3), abs=0.03)
    assert (height / width).log().abs().max() < math.log(3.3) * 1.25


@pytest.mark.parametrize("area", [(0.02, 0.33), (0.5, 1.0), (1e-5, 1e-4)])
def test_erased_rectangles_lie_inside_the_image_and_reach_every_border(area):
    config = AugmentConfig(erasing_probability=1.0, erasing_area=area)
    parameters = drawn(config, batch=MANY)
    for start, length in (
        (parameters.erase_top, parameters.erase_height),
        (parameters.erase_left, parameters.erase_width),
    ):
        assert length.min() >= 1
        assert start.min() == 0
        assert (start + length).max() == SIZE


def test_values_of_operations_that_are_off_are_neutral():
    parameters = drawn(AugmentConfig())
    ones = ("scale", "brightness", "contrast", "saturation")
    zeros = ("crop_y", "crop_x", "flip", "rotation", "shift_x", "shift_y", "shear", "hue", "blur_sigma", "erase_height")
    assert all((getattr(parameters, name) == 1).all() for name in ones)
    assert all((getattr(parameters, name) == 0).all() for name in zeros)
