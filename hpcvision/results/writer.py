"""Writes results.h5, format 1: every number, curve, weight and picture of a run, readable with h5py alone."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcvision.config import flatten
from hpcvision.results import digests
from hpcvision.results.files import write_archive
from hpcvision.results.record import FORMAT, Record

TRAIN_COLUMNS = {
    "step": ("i8", "optimisation steps completed", "steps"),
    "loss": ("f4", "training loss, mean since the last point, with augmentation", ""),
    "learning_rate": ("f4", "learning rate of the last step", ""),
    "seconds": ("f8", "training time so far over all stays", "s"),
    "images_per_second": ("f4", "training images per second since the last point, all processes together", "1/s"),
    "accuracy": ("f4", "training accuracy, mean since the last point, with augmentation", "fraction"),
}
HIGHER_IS_BETTER = {"loss": False, "accuracy": True}


def write_results(path: Path, record: Record) -> None:
    """Replace the archive at `path` by one that holds `record`, whole or not at all."""

    def fill(file: h5py.File) -> None:
        fill_run(file, record)
        digests.seal(file)

    write_archive(path, fill)


def fill_run(file: h5py.File, record: Record) -> None:
    """Write all groups and attributes of a run."""
    file.attrs.update(
        format=FORMAT,
        kind="run",
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
        scores.attrs["description"] = f"final scores on the {record.scored_split} split, last step"
        scores.attrs.update(record.scores)
    if record.confusion is not None:
        fill_classes(file, record)
    fill_images(file, record)


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
    for name in ("job_id", "host", "reason"):
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
    """/classes: confusion matrix, accuracy per class, names."""
    assert record.confusion is not None, "called for classifiers only"
    classes = file.create_group("classes")
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
    column(classes, "names", record.class_names, "str", "class names")


def fill_images(file: h5py.File, record: Record) -> None:
    """/samples/<name> and /interpolations/<name>, one image per chunk so that one can be read alone."""
    for name, samples in record.samples.items():
        group = file.create_group(f"samples/{name}")
        group.attrs.update(samples.attributes)
        dataset = pictures(group, samples.images)
        dataset.attrs["description"] = "generated images, not selected; height x width x red, green, blue"
        column(group, "labels", samples.labels, "i8", "class of each image")
        column(group, "seeds", samples.seeds, "i8", "seed of each image's noise")
    for name, way in record.interpolations.items():
        group = file.create_group(f"interpolations/{name}")
        group.attrs.update(way.attributes)
        dataset = pictures(group, way.images)
        dataset.attrs["description"] = "rows of images from one sample to another"
        column(group, "labels", way.labels, "i8", "classes at the two ends")


def pictures(group: h5py.Group, images: np.ndarray[Any, np.dtype[np.uint8]]) -> h5py.Dataset:
    """The dataset `images`, compressed."""
    chunk = (1,) * (images.ndim - 3) + images.shape[-3:]
    return group.create_dataset("images", data=images, chunks=chunk, compression="gzip", compression_opts=4)
