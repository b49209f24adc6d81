"""Figures of more than one run: curves over each other, a sweep's objective, the same noise in several models."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hpcvision.errors import UserError
from hpcvision.report.figures import COLOURS, save
from hpcvision.results import Run, Sweep, load, load_sweep

# Okabe & Ito's colours, in the order in which runs get them; dashes tell them apart without any colour.
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MOST_RUNS = len(RUN_COLOURS) * len(DASHES)
PER_ROW = 3
SAME_NOISE = 8
"""Images of each run that are laid side by side."""


def check_count(archives: list[Path]) -> None:
    """Raise UserError for more runs than can be told apart in a figure."""
    if len(archives) > MOST_RUNS:
        raise UserError(f"{len(archives)} runs cannot be told apart in one figure; give at most {MOST_RUNS}")


def curves_over_each_other(archives: list[Path], picture: Path) -> Path:
    """Validation loss, and accuracy where all have one, of several runs against the step."""
    check_count(archives)
    runs = [load(archive) for archive in archives]
    names = ["loss"] + (["accuracy"] if all("accuracy" in run.evaluate for run in runs) else [])
    figure = Figure(figsize=(4.8 * len(names), 3.6), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for number, (run, label) in enumerate(zip(runs, labels_of(runs), strict=True)):
            points = run.evaluate
            chosen = points[(points["split"] == "validation") & (points["weights"] == run.headline)]
            style = {"color": RUN_COLOURS[number % len(RUN_COLOURS)], "linestyle": DASHES[number // len(RUN_COLOURS)]}
            factor = 100 if name == "accuracy" else 1
            axis.plot(chosen["step"], factor * chosen[name], marker="o", markersize=2.5, label=label, **style)
        axis.set_xlabel("optimisation steps")
        axis.set_ylabel("validation accuracy (%)" if name == "accuracy" else "validation loss")
        axis.grid(alpha=0.25)
    axes[0][0].legend(frameon=False, fontsize="small")
    save(figure, picture)
    return picture


def labels_of(runs: list[Run]) -> list[str]:
    """The names of the runs, with the fingerprint where two have the same name."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else f"{run.name} {run.fingerprint}" for run in runs]


def sweep_figure(archive: Path, picture: Path) -> Path:
    """The objective against each swept setting, and the best that parameters and seconds buy (Pareto fronts)."""
    sweep = load_sweep(archive)
    trials = with_seconds(sweep)
    keys = [key for key in map(str, trials.columns) if "." in key and trials[key].nunique() > 1]
    panels = [*keys, "parameters", *(["seconds"] if "seconds" in trials else [])]
    rows = math.ceil(len(panels) / PER_ROW)
    figure = Figure(figsize=(3.4 * PER_ROW, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, PER_ROW, squeeze=False, sharey=True)
    for axis, key in zip(axes.flat, panels, strict=False):
        draw_objective(
            axis, trials, key, front=key in ("parameters", "seconds"), larger_is_better=sweep.larger_is_better
        )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for row in axes:
        row[0].set_ylabel(f"validation {sweep.objective}")
    axes[0][0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"{sweep.name}: {len(trials)} runs", fontsize="medium")
    save(figure, picture)
    return picture


def with_seconds(sweep: Sweep) -> pd.DataFrame:
    """The table of the trials, with the training seconds of those that have a run in the file."""
    trials = sweep.trials.copy()
    there = set(sweep.fingerprints)
    seconds = []
    for name in trials["fingerprint"]:
        curve = sweep.run(name).train.get("seconds", pd.Series()).tolist() if name in there else []
        seconds.append(curve[-1] if curve else math.nan)
    if not np.isnan(seconds).all():
        trials["seconds"] = seconds
    return trials


def draw_objective(axis: Any, trials: pd.DataFrame, key: str, *, front: bool, larger_is_better: bool) -> None:
    """One panel: finished trials filled, stopped ones hollow, and the front over the finished ones."""
    values = trials[key]
    numbers = values if pd.api.types.is_numeric_dtype(values) else values.astype("category").cat.codes
    for status, fill in (("finished", COLOURS["raw"]), ("stopped", "none")):
        chosen = (trials["status"] == status) & trials["objective"].notna()
        if chosen.any():
            axis.scatter(
                numbers[chosen],
                trials["objective"][chosen],
                facecolors=fill,
                edgecolors=COLOURS["raw"],
                s=18,
                label=status,
            )
    if numbers is not values:
        names = values.astype("category").cat.categories
        axis.set_xticks(range(len(names)), [str(name) for name in names], fontsize="small", rotation=20)
    elif (values > 0).all() and values.max() > 30 * values.min():
        axis.set_xscale("log")
    if front:
        done = trials[(trials["status"] == "finished") & trials["objective"].notna()]
        line = pareto(done[key].to_numpy(), done["objective"].to_numpy(), larger_is_better=larger_is_better)
        axis.step(*line, where="post", color=COLOURS["ema"], linewidth=1.2, label="best for so much")
        axis.legend(frameon=False, fontsize="small")
    axis.set_xlabel({"seconds": "training seconds"}.get(key, key.replace("_", " ")))
    axis.grid(alpha=0.25)


def pareto(costs: Any, objectives: Any, *, larger_is_better: bool) -> tuple[list[float], list[float]]:
    """Costs, rising, and objectives of those that no other has reached at less cost."""
    sign = 1 if larger_is_better else -1
    best, kept = -math.inf, []
    for cost, objective in sorted(
        zip(costs.tolist(), objectives.tolist(), strict=True), key=lambda p: (p[0], -sign * p[1])
    ):
        if sign * objective > best:
            best = sign * objective
            kept.append((cost, objective))
    return [cost for cost, _ in kept], [objective for _, objective in kept]


def same_noise(archives: list[Path], picture: Path) -> Path:
    """A row of random samples of each run, of the same seeds and classes, so that column by column compares."""
    check_count(archives)
    runs = [load(archive) for archive in archives]
    sets = [run.samples.get("random") for run in runs]
    for run, images in zip(runs, sets, strict=True):
        if images is None:
            raise UserError(f"{run.path} holds no samples; finished runs of diffusion models do, reduced copies not")
    first = sets[0]
    assert first is not None, "checked above"
    count = min(SAME_NOISE, *(len(images) for images in sets if images is not None))
    rows = []
    for run, images in zip(runs, sets, strict=True):
        assert images is not None, "checked above"
        if images.shape[1:] != first.shape[1:] or images.seeds is None or first.seeds is None:
            raise UserError(f"{run.path} has images of another size than {runs[0].path}; give runs of one data set")
        alike = (images.seeds[:count] == first.seeds[:count]).all() and (
            images.labels[:count] == first.labels[:count]
        ).all()
        if not alike:
            raise UserError(f"{run.path} was drawn from other seeds or classes than {runs[0].path}; draw them anew")
        rows.append(images[:count])
    figure = Figure(figsize=(5, 0.95 * len(rows) + 0.1), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)
    for axis, pixels, label in zip(axes[:, 0], rows, labels_of(runs), strict=True):
        axis.imshow(np.concatenate(list(pixels), axis=1), interpolation="nearest")
        axis.set_title(label, fontsize="small", loc="left")
        axis.axis("off")
    save(figure, picture)
    return picture
