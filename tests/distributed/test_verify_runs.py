"""`hpcvision results verify --scores` on a run that was really trained."""

import shutil
from pathlib import Path

import h5py
import torch
from real_processes import FinishedRun, hpcvision

from hpcvision import data
from hpcvision.results import digests, load, load_model


def test_scores_are_computed_anew_from_weights_and_data(finished: FinishedRun) -> None:
    result = hpcvision("results", "verify", finished.folder, "--scores", runs=finished.runs)
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "scores anew" in line]
    assert line.startswith("PASS")
    assert "test accuracy 0." in line
    assert "FAIL" not in result.stdout


def test_the_weights_and_the_normalisation_in_the_file_give_its_accuracy(finished: FinishedRun) -> None:
    run = load(finished.folder)
    model = run.config.model
    test = data.load(run.config.data, "test", image_size=model.image_size, num_classes=model.num_classes)
    mean, deviation = (torch.tensor(run.data[name])[:, None, None] for name in ("mean", "standard_deviation"))
    with torch.no_grad():
        logits = load_model(finished.folder)((test.images / 255 - mean) / deviation)
    accuracy = float((logits.argmax(1) == test.labels).double().mean())
    assert abs(accuracy - run.scores["test"].values["accuracy"].mean) < 0.003


def test_a_reduced_copy_gives_the_same_scores(finished: FinishedRun, tmp_path: Path) -> None:
    small = tmp_path / "small.h5"
    result = hpcvision("results", "reduce", finished.folder, "-o", small, "--significant-bits", 16, runs=finished.runs)
    assert result.returncode == 0, result.stderr
    result = hpcvision("results", "verify", small, "--scores", runs=finished.runs)
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "scores anew" in line]
    assert line.startswith("PASS")


def test_weights_that_do_not_give_the_scores_are_found_behind_hashes_that_fit(
    finished: FinishedRun, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(finished.folder / "results.h5", tmp_path / "results.h5"))
    with h5py.File(copy, "r+") as file:
        for kind in file["weights"].values():
            for values in kind.values():
                if values.ndim == 2:
                    values[...] = -values[...]
        del file[digests.TABLE]
        del file.attrs["digest"]
        digests.seal(file)
    result = hpcvision("results", "verify", copy, "--scores", runs=tmp_path)
    assert result.returncode == 1
    assert [line[:18].rstrip() for line in result.stdout.splitlines() if not line.startswith(("PASS", "SKIP"))] == [
        "FAIL  scores anew"
    ]
