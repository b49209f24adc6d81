"""Figures of a run, drawn from its archive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hpcvision.errors import UserError
from hpcvision.results.reader import read_curves, read_images, read_rules, read_summary
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
        raise UserError(f"{archive} holds no samples; a run of a diffusion model that has finished does")
    return made


def training_graph(archive: Path, picture: Path) -> Path:
    """Training and validation loss, and accuracy for classifiers, against the step; PNG, PDF or SVG by suffix."""
    summary = read_summary(archive)
    train, evaluate = read_curves(archive)
    names = ["loss"] + (["accuracy"] if "accuracy" in train else [])
    figure, axes = plt.subplots(1, len(names), figsize=(4.8 * len(names), 3.6), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        draw_curve(axis, train, evaluate, name)
    axes[0][0].legend(frameon=False)
    title = f"{summary.name} on {summary.data}: {summary.parameters:,} parameters, {summary.steps:,} steps"
    if "accuracy" in summary.scores:
        title += f", {summary.scored_split} accuracy {100 * summary.scores['accuracy']:.1f} %"
    figure.suptitle(title, fontsize="medium")
    save(figure, picture)
    plt.close(figure)
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
    figure, axes = plt.subplots(
        len(sheets),
        1,
        figsize=(5, 5 * sum(heights) + 0.4 * len(sheets)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, sheet) in zip(axes[:, 0], sheets.items(), strict=True):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_title(titles.get(name, name), fontsize="small", loc="left", wrap=True)
        axis.axis("off")
    save(figure, picture)
    plt.close(figure)
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


def draw_curve(axis: Any, train: pd.DataFrame, evaluate: pd.DataFrame, name: str) -> None:
    """One panel: the training curve, and the validation points of each set of weights."""
    factor = 100 if name == "accuracy" else 1
    # Every point is one interval of batches; a light line shows them, a dark one their running mean.
    axis.plot(train["step"], factor * train[name], color=COLOURS["train"], alpha=0.25, linewidth=0.8)
    smooth = train[name].rolling(max(1, len(train) // 40), min_periods=1, center=True).mean()
    axis.plot(train["step"], factor * smooth, color=COLOURS["train"], label="training (augmented)")
    for weights, points in evaluate[evaluate["split"] == "validation"].groupby("weights"):
        style = {"color": COLOURS[str(weights)], "label": LABELS[str(weights)], "marker": "o", "markersize": 2.5}
        axis.plot(points["step"], factor * points[name], **style)
    axis.set_xlabel("optimisation steps")
    axis.set_ylabel("accuracy (%)" if name == "accuracy" else "loss")
    axis.grid(alpha=0.25)
    if name == "loss":
        axis.set_ylim(bottom=0)
