"""Figures of a run, drawn from its archive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hpcvision.errors import UserError
from hpcvision.results.reader import Columns, read_images, read_points, read_rules, read_summary
from hpcvision.rundir import atomic_write

# Okabe & Ito's colours, told apart by colour-blind readers too; raw is blue, the average orange.
COLOURS = {"train": "#000000", "raw": "#0072B2", "ema": "#D55E00"}
SAMPLES_PER_ROW = 8
SUFFIXES = (".png", ".pdf", ".svg")
LABELS = {"raw": "validation", "ema": "validation, moving average"}


def drawn_for_user(draw: Callable[[Any, Path], Path | None], archive: Path | list[Path], picture: Path) -> Path:
    """The picture that `draw` makes of archives; raises UserError when it cannot be drawn there, or from that."""
    if picture.suffix not in SUFFIXES:
        raise UserError(f"{picture} cannot be drawn; choose a name that ends in {', '.join(SUFFIXES)}")
    try:
        made = draw(archive, picture)
    except OSError as error:
        raise UserError(f"cannot write {picture}: {error.strerror}; choose another place with --output") from None
    if made is None:
        raise UserError(f"{archive} holds no samples; finished runs of diffusion models do, reduced copies not")
    return made


def training_graph(archive: Path, picture: Path) -> Path:
    """Training and validation loss, and accuracy for classifiers, against the step; PNG, PDF or SVG by suffix."""
    summary = read_summary(archive)
    train, evaluate = read_points(archive)
    names = ["loss"] + (["accuracy"] if "accuracy" in train else [])
    figure = Figure(figsize=(4.8 * len(names), 3.6), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        draw_curve(axis, train, evaluate, name)
    axes[0][0].legend(frameon=False)
    title = f"{summary.name} on {summary.data}: {summary.parameters:,} parameters, {summary.steps:,} steps"
    if "accuracy" in summary.scores:
        title += f", {summary.scored_split} accuracy {100 * summary.scores['accuracy']:.1f} %"
    figure.suptitle(title, fontsize="medium")
    save(figure, picture)
    return picture


def samples_picture(archive: Path, picture: Path) -> Path | None:
    """Random samples, eight in a row, and each interpolation as a row, pixel for pixel, enlarged; None without any."""
    images = read_images(archive)
    if not images:
        return None
    titles, sheets = titles_of(archive), {}
    for name, pixels in images.items():
        rows = pixels if pixels.ndim == 5 else in_rows(pixels)
        sheets[name] = rows.transpose(0, 2, 1, 3, 4).reshape(rows.shape[0] * rows.shape[2], -1, 3)
    heights = [sheet.shape[0] / sheet.shape[1] for sheet in sheets.values()]
    figure = Figure(figsize=(5, 5 * sum(heights) + 0.4 * len(sheets)), layout="constrained")
    axes = figure.subplots(len(sheets), 1, height_ratios=heights, squeeze=False)
    for axis, (name, sheet) in zip(axes[:, 0], sheets.items(), strict=True):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_title(titles.get(name, name), fontsize="small", loc="left", wrap=True)
        axis.axis("off")
    save(figure, picture)
    return picture


def titles_of(archive: Path) -> dict[str, str]:
    """What selected images were selected by, beside their name; `samples/best` must not pass for chance."""
    return {f"samples/{name}": f"samples/{name}: {rule}" for name, rule in read_rules(archive).items()}


def save(figure: Figure, picture: Path) -> None:
    """Write the figure, whole or not at all, in the format that the name ends with."""
    with atomic_write(picture) as file:
        figure.savefig(file, dpi=150, format=picture.suffix.removeprefix("."))


def in_rows(images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(rows, 8, H, W, 3) of (N, H, W, 3); missing places are white."""
    rows = -(-len(images) // SAMPLES_PER_ROW)
    places = np.full((rows * SAMPLES_PER_ROW, *images.shape[1:]), 255, dtype=np.uint8)
    places[: len(images)] = images
    return places.reshape(rows, SAMPLES_PER_ROW, *images.shape[1:])


def draw_curve(axis: Any, train: Columns, evaluate: Columns, name: str) -> None:
    """One panel: the training curve, and the validation points of each set of weights."""
    factor = 100 if name == "accuracy" else 1
    # Every point is one interval of batches; a light line shows them, a dark one their running mean.
    axis.plot(train["step"], factor * train[name], color=COLOURS["train"], alpha=0.25, linewidth=0.8)
    smooth = running_mean(train[name], len(train["step"]) // 40)
    axis.plot(train["step"], factor * smooth, color=COLOURS["train"], label="training (augmented)")
    for weights, label in LABELS.items():
        points = (evaluate["split"] == "validation") & (evaluate["weights"] == weights)
        if points.any():
            style = {"color": COLOURS[weights], "label": label, "marker": "o", "markersize": 2.5}
            axis.plot(evaluate["step"][points], factor * evaluate[name][points], **style)
    axis.set_xlabel("optimisation steps")
    axis.set_ylabel("accuracy (%)" if name == "accuracy" else "loss")
    axis.grid(alpha=0.25)
    if name == "loss":
        axis.set_ylim(bottom=0)


def running_mean(values: NDArray[Any], width: int) -> NDArray[np.float64]:
    """The mean of so many points around each; at both ends of those that there are."""
    if not len(values):
        return np.empty(0)
    window = np.ones(max(1, min(width, len(values))))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
