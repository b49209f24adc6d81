"""Images drawn by hpcvision itself, shaped like CIFAR-100, AddNIST or smaller: no download, the same bytes everywhere.

Only additions, products, quotients, comparisons and roots are used, each of which IEEE 754 rounds in one way, so that
the hash of the data is the same on every processor; hence triangle waves instead of sines and rotations by rational
numbers. Torch's plain, AVX2 and AVX-512 kernels were seen to agree. The draw never depends on the seed of a run.
"""

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from hpcvision.data.addnist import triples_by_class
from hpcvision.data.splits import SPLIT_NAMES, Split, SplitName
from hpcvision.seeding import generator

SIZES: dict[SplitName, int] = {"train": 10_000, "validation": 1_000, "test": 2_000}
GENERATION_SEED = 0
# Images drawn at once: the fields of 500 stay in a core's cache.
CHUNK = 500

# Share of the images, in every split, whose label is a wrong one: nothing can score above 1 minus this.
LABEL_NOISE = 0.05

SHAPES = ("disc", "ring", "square", "cross", "triangle")
# (name, waves per pixel along x and y); checks are the product of waves along x and along y.
TEXTURES = (
    ("horizontal stripes", 0.0, 0.22),
    ("vertical stripes", 0.22, 0.0),
    ("rising stripes", 0.16, 0.16),
    ("falling stripes", 0.16, -0.16),
    ("checks", 0.14, 0.14),
)
COLOURS = (
    ("red on blue", (0.95, 0.2, 0.15), (0.15, 0.2, 0.9)),
    ("green on purple", (0.2, 0.8, 0.2), (0.6, 0.1, 0.7)),
    ("yellow on teal", (0.95, 0.85, 0.2), (0.05, 0.45, 0.5)),
    ("white on brown", (0.95, 0.95, 0.95), (0.45, 0.25, 0.1)),
)

# Of the small form.
SMALL_COLOURS = (("orange", (0.95, 0.5, 0.1)), ("blue", (0.15, 0.35, 0.95)))
SMALL_STATISTICS = ((0.4442, 0.4072, 0.4369), (0.2392, 0.107, 0.2485))

# Strokes of the digits: polylines through points xy of a grid of 4 x 6.
DIGIT_STROKES = (
    "10 30 41 45 36 16 05 01 10",
    "11 20 26",
    "01 10 30 41 42 06 46",
    "00 40 23 33 44 45 36 16 05",
    "36 30 04 44",
    "40 00 03 33 44 45 36 06",
    "31 20 02 05 16 36 45 44 33 13 04",
    "00 40 16",
    "13 02 01 10 30 41 42 33 44 45 36 16 05 04 13 33",
    "15 26 44 41 30 10 01 02 13 33 42",
)
# The field of distances to a digit's strokes is kept on a grid finer than the pixels, `margin` cells around 4 x 6.
CELLS_PER_UNIT, MARGIN = 8, 4


def load(split: SplitName, image_size: int, _validation_seed: int) -> Split:
    """10,000 training, 1,000 validation or 2,000 test images, (N, 3, image_size, image_size) uint8.

    32: 100 classes, an object of one of 5 shapes x 5 textures x 4 pairs of colours somewhere on a busy background.
    28: 20 classes in AddNIST's manner, a digit made of strokes in every colour channel, the class is their sum - 1.
    16: 10 classes, one of 5 shapes in one of 2 colours on a grey background, for small generators.
    Classes are balanced before `LABEL_NOISE` of the labels are exchanged for a wrong one.
    """
    return _draw(split, image_size)


def describe(image_size: int) -> str:
    """The name for reports."""
    return f"synthetic {image_size}x{image_size}, {len(class_names(image_size))} classes"


def statistics(image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel over the training images, in [0, 1], as measured."""
    if image_size == 32:
        return (0.4548, 0.4417, 0.4411), (0.2847, 0.279, 0.2797)
    if image_size == 16:
        return SMALL_STATISTICS
    return (0.1607, 0.1601, 0.1609), (0.2878, 0.2873, 0.2881)


def class_names(image_size: int) -> list[str]:
    """Shape, texture and colours; `sum 1` to `sum 20`; or colour and shape, by class index."""
    if image_size == 32:
        product = itertools.product(SHAPES, TEXTURES, COLOURS)
        return [f"{shape}, {texture[0]}, {colour[0]}" for shape, texture, colour in product]
    if image_size == 16:
        return [f"{colour} {shape}" for shape, (colour, _) in itertools.product(SHAPES, SMALL_COLOURS)]
    return [f"sum {label + 1}" for label in range(len(triples_by_class()))]


def status(_image_size: int) -> dict[str, Any]:
    """Nothing is on disk and nothing missing."""
    return {"folder": "", "present": [], "missing": [], "prepared": True}


# Each form has three splits, 44 MB at most.
@lru_cache(maxsize=6)
def _draw(split: SplitName, image_size: int) -> Split:
    stream = generator(GENERATION_SEED, f"synthetic/{image_size}", SPLIT_NAMES.index(split))
    classes = len(class_names(image_size))
    labels = torch.arange(SIZES[split]) % classes
    draw = {32: _draw_objects, 28: _draw_digits, 16: _draw_small}[image_size]
    images = torch.cat([draw(chunk, stream) for chunk in _chunks(labels)])
    is_wrong = torch.rand(len(labels), generator=stream) < LABEL_NOISE
    other = 1 + (torch.rand(len(labels), generator=stream) * (classes - 1)).long()
    return Split(images, torch.where(is_wrong, (labels + other) % classes, labels))


def _chunks(labels: torch.Tensor) -> list[torch.Tensor]:
    return [labels[start : start + CHUNK] for start in range(0, len(labels), CHUNK)]


def _draw_objects(labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """labels: (N,) -> (N, 3, 32, 32) uint8."""
    side, count = 32, len(labels)
    shape, texture, colour = labels // 20, labels // 4 % 5, labels % 4
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=stream)

    image = uniform(0, 1, 3)
    # Gratings and rectangles of any colour: distractors that look like parts of objects.
    image = image + 0.2 * uniform(-1, 1, 3) * _wave(x * uniform(-0.25, 0.25) + y * uniform(-0.25, 0.25))[:, None]
    for _ in range(3):
        inside = ((x - uniform(0, side)).abs() < uniform(1, 5)) & ((y - uniform(0, side)).abs() < uniform(1, 5))
        image = torch.where(inside[:, None], uniform(0, 1, 3), image)

    radius = uniform(8, 12)
    u, v = _rotate((x - uniform(10, 22)) / radius, (y - uniform(10, 22)) / radius, uniform(-0.12, 0.12))
    cover = (_inside(u, v, shape) * radius + 0.5).clamp(0, 1)[:, None]
    waves = torch.tensor([entry[1:] for entry in TEXTURES])[texture] * uniform(0.8, 1.2)[:, 0]
    along_x, along_y = x * waves[:, 0, None, None] + uniform(0, 1), y * waves[:, 1, None, None] + uniform(0, 1)
    is_checks = (texture == len(TEXTURES) - 1)[:, None, None]
    wave = torch.where(is_checks, 2 * _wave(along_x) * _wave(along_y), _wave(along_x + along_y))
    share = (0.5 + 1.5 * wave).clamp(0, 1)[:, None]
    pair = torch.tensor([entry[1:] for entry in COLOURS])[colour][..., None, None]
    pair = pair + 0.15 * uniform(-1, 1, 6).view(count, 2, 3, 1, 1)
    image = image + cover * (pair[:, 0] * share + pair[:, 1] * (1 - share) - image)

    image = image * uniform(0.6, 1.2, 1) + 0.1 * uniform(-1, 1, 3)
    return _with_noise(image, 0.06, stream)


def _draw_small(labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """labels: (N,) -> (N, 3, 16, 16) uint8."""
    side, count = 16, len(labels)
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=stream)

    radius = uniform(5, 6.5)
    u, v = (x - uniform(7, 9)) / radius, (y - uniform(7, 9)) / radius
    cover = (_inside(u, v, labels // len(SMALL_COLOURS)) * radius + 0.5).clamp(0, 1)[:, None]
    colour = torch.tensor([entry[1] for entry in SMALL_COLOURS])[labels % len(SMALL_COLOURS)][..., None, None]
    background = uniform(0.2, 0.6, 1)
    return _with_noise(background + cover * (colour + uniform(-0.1, 0.1, 3) - background), 0.02, stream)


def _inside(u: torch.Tensor, v: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """(N, H, W), positive inside the shape, about the distance to its edge in radii; u, v: (N, H, W), shape: (N,)."""
    a, b = u.abs(), v.abs()
    r = _root(u * u + v * v)
    fields = (
        1 - r,
        0.22 - (r - 0.78).abs(),
        0.85 - torch.maximum(a, b),
        torch.minimum(1 - torch.maximum(a, b), 0.3 - torch.minimum(a, b)),
        torch.minimum(0.75 - v, (0.8 + 1.0 * v) * 0.5 - a * 0.85),
    )
    inside = fields[0]
    for index, field in enumerate(fields):
        inside = torch.where((shape == index)[:, None, None], field, inside)
    return inside


def _draw_digits(labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """labels: (N,) -> (N, 3, 28, 28) uint8."""
    side, count = 28, len(labels)
    triples = triples_by_class()
    choice = torch.rand(count, generator=stream).tolist()
    digits = torch.tensor(
        [triples[label][int(u * len(triples[label]))] for label, u in zip(labels.tolist(), choice, strict=True)]
    )
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 3, 1, 1, generator=stream)

    # Pixels to units of the stroke grid, centred on (2, 3); a digit is 4 x 6 units.
    scale = uniform(2.8, 3.5)
    u, v = _rotate((x - uniform(12, 16)) / scale, (y - uniform(12, 16)) / scale, uniform(-0.12, 0.12))
    u = u * uniform(0.9, 1.2) + v * uniform(-0.15, 0.15) + 2
    v = v + 3
    distances = _digit_distances()
    column = ((u + MARGIN) * CELLS_PER_UNIT).long().clamp(0, distances.shape[2] - 1)
    row = ((v + MARGIN) * CELLS_PER_UNIT).long().clamp(0, distances.shape[1] - 1)
    distance = distances[digits[:, :, None, None], row, column]
    ink = ((uniform(0.3, 0.6) - distance) * scale + 0.5).clamp(0, 1)
    return _with_noise(ink * uniform(0.7, 1.0), 0.1, stream)


@lru_cache(maxsize=1)
def _digit_distances() -> torch.Tensor:
    """(10, rows, columns) float32: distance of every cell's centre to the strokes of each digit, in grid units."""
    rows, columns = ((extent + 2 * MARGIN) * CELLS_PER_UNIT for extent in (6, 4))
    y = ((torch.arange(rows) + 0.5) / CELLS_PER_UNIT - MARGIN)[:, None]
    x = (torch.arange(columns) + 0.5) / CELLS_PER_UNIT - MARGIN
    fields = []
    for strokes in DIGIT_STROKES:
        points = [(int(point[0]), int(point[1])) for point in strokes.split()]
        nearest = torch.full((rows, columns), 99.0)
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            dx, dy = x1 - x0, y1 - y0
            along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
            off_x, off_y = x - x0 - along * dx, y - y0 - along * dy
            nearest = torch.minimum(nearest, _root(off_x * off_x + off_y * off_y))
        fields.append(nearest)
    return torch.stack(fields)


def _root(x: torch.Tensor) -> torch.Tensor:
    """The square root as IEEE 754 rounds it. Torch's own is MKL's, whose last bit differs between Intel and AMD."""
    return torch.from_numpy(np.sqrt(x.numpy()))


def _rotate(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y turned by twice the angle whose tangent is t (the rational points of the unit circle)."""
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return x * cosine - y * sine, x * sine + y * cosine


def _wave(phase: torch.Tensor) -> torch.Tensor:
    """A triangle wave of period 1 between -1 and 1."""
    return (phase - phase.floor() - 0.5).abs() * 4 - 1


def _with_noise(image: torch.Tensor, width: float, stream: torch.Generator) -> torch.Tensor:
    """uint8 of an image in [0, 1] after uniform noise in +- width; values outside are cut."""
    noise = (torch.rand(image.shape, generator=stream) - 0.5) * (2 * width)
    return ((image + noise).clamp(0, 1) * 255 + 0.5).to(torch.uint8)
