"""Writes results.h5, format 1: every number, curve, weight and picture of a run, readable with h5py alone."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcvision.config import flatten
from hpcvision.results import digests
from hpcvision.results.files import open_archive, write_archive
from hpcvision.results.record import FORMAT, HIGHER_IS_BETTER, Record, Rows, Samples, Score

TRAIN_COLUMNS = {
    "step": ("i8", "optimisation steps completed", "steps"),
    "loss": ("f4", "training loss, mean since the last point, with augmentation", ""),
    "learning_rate": ("f4", "learning rate of the last step", ""),
    "seconds": ("f8", "training time so far over all stays", "s"),
    "images_per_second": ("f4", "training images per second since the last point, all processes together", "1/s"),
    "accuracy": (
        "f4",
        "training accuracy, mean since the last point, with augmentation; of two images mixed, the larger part counts",
        "fraction",
    ),
}
LOWER_IS_BETTER = ("fid", "frechet", "kernel_distance", "seconds_per_image")  # beginnings of names


def write_results(path: Path, record: Record) -> None:
    """Replace the archive at `path` by one that holds `record`, whole or not at all."""

    def fill(file: h5py.File) -> None:
        fill_run(file, record)
        digests.seal(file)

    write_archive(path, fill)


def write_images(
    path: Path,
    attributes: dict[str, Any],
    *,
    samples: dict[str, Samples] | None = None,
    interpolations: dict[str, Rows] | None = None,
    strips: dict[str, Rows] | None = None,
) -> None:
    """A small archive of kind `images`: pictures that a finished run's model drew later."""

    def fill(file: h5py.File) -> None:
        file.attrs.update({"format": FORMAT, "kind": "images"} | attributes)
        fill_images(file, samples or {}, interpolations or {}, strips or {})
        digests.seal(file)

    write_archive(path, fill)


def add_scores(path: Path, scores: dict[str, Score], *, reads_test: bool) -> None:
    """Add `/scores/<name>` to a finished archive, in the place of older ones of that name; the file is made anew."""

    def fill(file: h5py.File) -> None:
        with open_archive(path) as old:
            file.attrs.update(old.attrs)
            for name, item in old.items():
                if name != digests.TABLE:
                    old.copy(item, file, name)
        if reads_test:
            file.attrs["test_reads"] += 1
        for name, score in scores.items():
            if f"scores/{name}" in file:
                del file[f"scores/{name}"]
            fill_score(file.create_group(f"scores/{name}"), score)
        digests.seal(file)

    write_archive(path, fill)


def fill_score(group: h5py.Group, score: Score) -> None:
    """Each value as a dataset over the sets of seeds with its mean and deviation, and the passport as attributes."""
    group.attrs["description"] = "scores of generated images; each dataset has one value for every set of seeds"
    group.attrs.update({name: value for name, value in score.passport.items() if value is not None})
    for name, values in score.values.items():
        dataset = column(group, name, values, "f8", f"{name.replace('_', ' ')}, one value for every set of seeds")
        dataset.attrs.update(mean=score.mean(name), standard_deviation=score.deviation(name))
        dataset.attrs.update(low=min(values), high=max(values), higher_is_better=not name.startswith(LOWER_IS_BETTER))
    for name, array in score.by_class.items():
        dataset = group.create_dataset(name, data=array)
        dataset.attrs["description"] = f"{name.replace('_', ' ')} of the first set, by class index"


def fill_run(file: h5py.File, record: Record) -> None:
    """Write all groups and attributes of a run."""
    file.attrs.update(
        format=FORMAT,
        kind="run",
        description=description(record),
        name=record.name,
        fingerprint=record.fingerprint,
        track=record.config["track"],
        config_json=json.dumps(record.config, sort_keys=True),
        caps_json=json.dumps(record.caps, sort_keys=True),
        provenance_json=json.dumps(record.provenance, sort_keys=True),
        data_json=json.dumps(record.data, sort_keys=True),
        parameters=record.parameters,
        steps=record.steps,
        finished=record.finished,
        test_reads=record.test_reads,
    )
    config = file.create_group("config")
    for key, value in flatten(record.config).items():
        config.attrs[key] = "none" if value is None else value
    fill_curves(file, record)
    fill_weights(file, record)
    if record.scores:
        scores = file.create_group(f"scores/{record.scored_split}")
        scores.attrs["description"] = description_of_scores(record)
        scores.attrs.update(record.scores)
    fill_classes(file, record)
    if record.source:
        source = file.create_group("source")
        source.attrs["description"] = "the files that say what the network computes, as they were when it was trained"
        column(source, "path", record.source.keys(), "str", "path below the package hpcvision")
        column(source, "text", record.source.values(), "str", "the whole file")
    fill_images(file, record.samples, record.interpolations, record.strips)


def description(record: Record) -> str:
    """What somebody who has only the file must know to use it."""
    kind, headline = record.config["model"]["kind"], record.config["ema"]["headline"]
    return (
        f"A training run of hpcvision. Every dataset has a description. weights/{headline} (those that the scores are "
        f"of) holds the parameters and buffers of a PyTorch module, {kind}, by name; source has its code, config_json "
        "(model) its settings. It takes float32 images (images, channel, height, width), channels red, green, blue: "
        "pixels from 0 to 1, minus mean, divided by standard_deviation, both in data_json. "
        + (
            "It gives a logit for each class of classes/names."
            if record.config["task"]["kind"] == "classify"
            else "They are noised; it also takes a timestep and a class for each, and gives what config_json (task, "
            "prediction) says."
        )
    )


def description_of_scores(record: Record) -> str:
    """Of what the final scores are, and what those names say that do not speak for themselves."""
    headline = record.config["ema"]["headline"]
    words = (
        f"final scores on the {record.scored_split} split, last step, of the weights {headline}; names ending in _raw "
        "or _ema are of those weights"
    )
    if "accuracy_batch_deviation" in record.scores:
        words += (
            "; accuracy_low and accuracy_high: 95 % Wilson interval; accuracy_batch_deviation: standard deviation over "
            f"batches of {record.config['train']['global_batch_size']} images"
        )
    return words


def column(group: h5py.Group, name: str, values: Any, dtype: str, description: str, unit: str = "") -> h5py.Dataset:
    """One column of a table, with its description and unit."""
    if dtype == "str":
        dataset = group.create_dataset(name, data=list(values), dtype=h5py.string_dtype())
    else:
        dataset = group.create_dataset(name, data=np.asarray(values, dtype=dtype))
    dataset.attrs["description"] = description
    dataset.attrs["unit"] = unit
    return dataset


def fill_curves(file: h5py.File, record: Record) -> None:
    """/train, /evaluate and /ledger."""
    train = file.create_group("train")
    for name, (dtype, description, unit) in TRAIN_COLUMNS.items():
        if name in ("step", "loss") or any(name in row for row in record.train):
            column(train, name, [row[name] for row in record.train], dtype, description, unit)
    evaluate = file.create_group("evaluate")
    column(evaluate, "step", [row["step"] for row in record.evaluate], "i8", "optimisation steps completed", "steps")
    for name, text in (("split", "which images: validation or test"), ("weights", "raw or ema (the moving average)")):
        column(evaluate, name, [row[name] for row in record.evaluate], "str", text)
    for name, higher in HIGHER_IS_BETTER.items():
        if name == "loss" or any(name in row for row in record.evaluate):
            values = [row.get(name, np.nan) for row in record.evaluate]
            dataset = column(evaluate, name, values, "f8", f"{name} on the split", "fraction" if higher else "")
            dataset.attrs["higher_is_better"] = higher
    ledger = file.create_group("ledger")
    ledger.attrs["description"] = "one row per stay on a machine; the steps of all rows add up to the steps of the run"
    for name in ("job_id", "host", "commit", "reason"):
        column(ledger, name, [str(row[name]) for row in record.ledger], "str", f"{name.replace('_', ' ')} of the stay")
    for name in ("restart", "world_size", "from_step", "to_step"):
        column(ledger, name, [row[name] for row in record.ledger], "i8", f"{name.replace('_', ' ')} of the stay")


def fill_weights(file: h5py.File, record: Record) -> None:
    """/weights/raw and /weights/ema, one dataset per parameter and buffer."""
    for kind, arrays in record.weights.items():
        group = file.create_group(f"weights/{kind}")
        group.attrs["description"] = {"raw": "weights after the last step", "ema": "moving average of the weights"}[
            kind
        ]
        for name, array in arrays.items():
            dataset = group.create_dataset(name, data=array)
            dataset.attrs["description"] = f"{name} of {record.config['model']['kind']}"


def fill_classes(file: h5py.File, record: Record) -> None:
    """/classes: names, and of a finished classifier the confusion matrix and the accuracy of each class."""
    classes = file.create_group("classes")
    column(classes, "names", record.class_names, "str", "class names")
    if record.confusion is None:
        return
    classes.attrs["description"] = f"of the weights {record.config['ema']['headline']}, last step"
    column(
        classes,
        "confusion",
        record.confusion,
        "i8",
        f"{record.scored_split} images; row = true class, column = predicted class",
    )
    totals = record.confusion.sum(axis=1)
    per_class = np.divide(record.confusion.diagonal(), totals, out=np.full(len(totals), np.nan), where=totals > 0)
    column(classes, "accuracy", per_class, "f4", f"{record.scored_split} accuracy of each class", "fraction")


def fill_images(
    file: h5py.File, samples: dict[str, Samples], interpolations: dict[str, Rows], strips: dict[str, Rows]
) -> None:
    """/samples/<name>, /interpolations/<name> and /strips/<name>, one image per chunk so that one can be read alone."""
    for name, some in samples.items():
        fill_samples(file, name, some)
    for name, rows in interpolations.items():
        fill_rows(file, f"interpolations/{name}", rows, "rows of images from one sample to another")
    for name, rows in strips.items():
        fill_rows(file, f"strips/{name}", rows, "rows of one image each, at the noise levels of `timesteps`")


def fill_samples(file: h5py.File, name: str, samples: Samples) -> None:
    """/samples/<name>."""
    group = file.create_group(f"samples/{name}")
    group.attrs.update(samples.attributes)
    if samples.merit is not None:
        column(group, "merit", samples.merit, "f8", "what `rule` says of each image; higher is better")
    dataset = pictures(group, samples.images)
    how = "selected by `rule`" if "rule" in samples.attributes else "not selected"
    what, seeds = f"generated images, {how}", "seed of each image's noise"
    if samples.attributes.get("real"):
        what, seeds = "validation images, nothing of them generated", "place of each among the validation images"
    dataset.attrs["description"] = f"{what}; height x width x red, green, blue"
    column(group, "labels", samples.labels, "i8", "class of each image")
    column(group, "seeds", samples.seeds, "i8", seeds)


def fill_rows(file: h5py.File, path: str, rows: Rows, description: str) -> None:
    """Rows of images at `path`."""
    group = file.create_group(path)
    group.attrs.update(rows.attributes)
    pictures(group, rows.images).attrs["description"] = description
    column(group, "labels", rows.labels, "i8", "classes at the two ends of each row")


def pictures(group: h5py.Group, images: np.ndarray[Any, np.dtype[np.uint8]]) -> h5py.Dataset:
    """The dataset `images`, compressed."""
    chunk = (1,) * (images.ndim - 3) + images.shape[-3:]
    return group.create_dataset("images", data=images, chunks=chunk, compression="gzip", compression_opts=4)
