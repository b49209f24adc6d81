"""verify finds what does not add up, also where the hashes were made to fit."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcvision.config.catalogue import load_job
from hpcvision.results import digests, load
from hpcvision.results.record import Score
from hpcvision.results.writer import add_scores, write_results
from hpcvision.verify import verify
from hpcvision.verify.scores import Drawn

STORED = Path(__file__).parents[1] / "data"


@pytest.fixture
def stored(tmp_path):
    """A copy of a healthy run."""
    return Path(shutil.copy(STORED / "format1_run.h5", tmp_path / "run.h5"))


def failed(path):
    """Subject -> words of what failed."""
    return {finding.subject: finding.words for finding in verify(path) if finding.verdict == "FAIL"}


def sealed_again(path, change, group="/"):
    """The file with a change, and with hashes that fit it."""
    with h5py.File(path, "r+") as file:
        change(file[group])
        for place in {group, "/"}:
            del file[place][digests.TABLE]
            file[place].attrs.pop("digest")
        for place in sorted({group, "/"}, reverse=True):
            digests.seal(file[place])


def set_value(name, index, value):
    """A change of one value of a dataset."""

    def change(file):
        file[name][index] = value

    return change


def set_attribute(name, value, where="/"):
    """A change of one attribute."""

    def change(file):
        (file if where == "/" else file[where]).attrs[name] = value

    return change


def set_config(key, value):
    """A change of one setting."""

    def change(file):
        settings = json.loads(file.attrs["config_json"])
        part, name = key.split(".")
        settings[part][name] = value
        file.attrs["config_json"] = json.dumps(settings, sort_keys=True)

    return change


def test_a_healthy_run_passes_everything(stored):
    assert [finding.verdict for finding in verify(stored)] == ["PASS"] * 7


def test_every_changed_dataset_and_attribute_is_found_and_named(stored):
    with h5py.File(stored) as file:
        places = [path for path in digests.digests_of(file) if path.partition("@")[0] or path == "@name"]
    assert len(places) > 150
    for place in places[:: max(1, len(places) // 40)]:
        copy = stored.with_name("changed.h5")
        shutil.copy(stored, copy)
        path, _, name = place.partition("@")
        with h5py.File(copy, "r+") as file:
            item = file[path] if path else file
            if name:
                value = item.attrs[name]
                item.attrs[name] = f"{value}x" if isinstance(value, str) else np.asarray(value) * 0 + 17
            elif h5py.check_string_dtype(item.dtype):
                item[0] = "changed"
            else:
                item[...] = item[...] + 1
        found = next(verify(copy))
        assert found.verdict == "FAIL", place
        assert place in found.words, place


CHANGES = {
    "a ledger with a gap": (set_value("ledger/from_step", 1, 25), "ledger", "from step 25 to 40, after step 20"),
    "steps counted twice": (
        set_value("ledger/to_step", 0, 30),
        "ledger",
        "stay 2 goes from step 20 to 40, after step 30",
    ),
    "steps that are missing": (set_value("ledger/to_step", 1, 39), "ledger", "2 stays make 39 steps, the run has 40"),
    "more parameters than it says": (set_attribute("parameters", 352), "parameters", "file says 352"),
    "a weight that is not finite": (
        set_value("weights/ema/head.1.bias", 0, np.nan),
        "parameters",
        "ema weights are not all finite",
    ),
    "another configuration": (set_config("optim.learning_rate", 0.5), "settings", "the file says 09562fc82d9f"),
    "another setting to look at": (
        set_attribute("optim.learning_rate", 0.5, "config"),
        "settings",
        "optim.learning_rate is 0.5 in /config, 0.001 in config_json",
    ),
    "fewer steps than were made": (
        set_attribute("steps", 1),
        "settings",
        "the file says 1 steps, its configuration 40",
    ),
    "a test split that nobody read": (
        set_attribute("test_reads", 0),
        "scores",
        "read 0 times, which the scores contradict",
    ),
    "a last evaluation that is not there": (set_value("evaluate/step", 4, 39), "scores", "last evaluation nan"),
    "a better mean": (
        set_attribute("mean", 0.01, "scores/features_test_ema_ddim_5/frechet"),
        "scores",
        "features_test_ema_ddim_5 frechet 0.010000, mean of its values 2.500000",
    ),
    "a smaller deviation": (
        set_attribute("standard_deviation", 0.01, "scores/features_test_ema_ddim_5/frechet"),
        "scores",
        "frechet has another deviation than its values",
    ),
    "better classes": (set_value("classes/accuracy", 3, 1.0), "scores", "accuracy of a class is not that"),
    "no images at all": (set_value("classes/confusion", ..., 0), "scores", "cannot be computed from what is stored"),
    "a column that is gone": (lambda file: file["ledger"].__delitem__("to_step"), "ledger", "lacks to_step"),
    "a model that cannot be": (set_config("model.width", 1e9), "parameters", ""),
    "a file over its caps": (set_attribute("parameters", 200_000), "caps", "has 200,000 parameters"),
    "another width": (set_config("model.width", 1.0), "parameters", "weights do not fit addnist_cnn: features.0.bias"),
    "other caps": (set_attribute("caps_json", '{"parameters": 200000, "steps": 10000}'), "caps", "200000"),
    "a better accuracy": (
        set_attribute("accuracy", 0.99, "scores/test"),
        "scores",
        "test accuracy 0.990000, confusion",
    ),
    "a narrower interval": (set_attribute("accuracy_low", 0.72, "scores/test"), "scores", "or its interval"),
    "another loss": (set_attribute("loss", 0.1, "scores/test"), "scores", "final test loss 0.1"),
    "a curve out of order": (set_value("train/step", 3, 2), "curves", "do not lead to step 40"),
    "a loss that is not finite": (set_value("train/loss", 3, np.inf), "curves", "not finite everywhere"),
}


def test_an_unfinished_run_has_the_steps_that_it_has_made_and_a_finished_one_all(make_record, tmp_path):
    for finished in (False, True):
        write_results(tmp_path / "run.h5", make_record(finished=finished, steps=40))
        assert ("settings" in failed(tmp_path / "run.h5")) == finished


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_add_up_is_found_behind_hashes_that_fit(name, stored):
    change, subject, words = CHANGES[name]
    sealed_again(stored, change)
    found = failed(stored)
    assert "hashes" not in found
    assert words in found[subject]


def test_the_table_of_a_sweep_is_held_against_its_runs(tmp_path):
    path = Path(shutil.copy(STORED / "format1_sweep.h5", tmp_path / "sweep.h5"))
    assert failed(path) == {}
    sealed_again(path, set_value("trials/objective", 1, 0.99))
    assert "the table says 0.990000" in failed(path)["trials"]


def test_a_winner_that_is_none_of_the_trials_is_found_and_the_runs_are_still_looked_at(tmp_path):
    path = Path(shutil.copy(STORED / "format1_sweep.h5", tmp_path / "sweep.h5"))
    sealed_again(path, set_attribute("winner", "nobody"))
    findings = {finding.subject: finding for finding in verify(path)}
    assert findings["winner"].words == "nobody is none of the finished trials"
    assert findings["ledger"].words == "2 of 2 runs"


def test_a_run_of_a_sweep_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    path = Path(shutil.copy(STORED / "format1_sweep.h5", tmp_path / "sweep.h5"))
    with h5py.File(path) as file:
        name = sorted(file["runs"])[0]
    sealed_again(path, lambda group: group.attrs.__delitem__("parameters"), f"/runs/{name}")
    findings = list(verify(path))
    assert [finding.subject for finding in findings if finding.words.startswith(name)] == ["run"]
    assert ("PASS", "ledger", "1 of 2 runs") in [(f.verdict, f.subject, f.words) for f in findings]


@pytest.mark.parametrize("where", ["digests", "digests/path", "digests/sha256"])
def test_the_table_of_hashes_cannot_be_added_to(where, stored):
    with h5py.File(stored, "r+") as file:
        file[where].attrs["note"] = "x"
    assert f"{where}@note" in failed(stored)["hashes"]
    with h5py.File(stored, "r+") as file:
        file["digests/more"] = [1]
    assert "digests/more" in failed(stored)["hashes"]


def test_a_dataset_that_cannot_be_decompressed_is_named_and_the_rest_is_verified(stored):
    with h5py.File(stored) as file:
        place = file["samples/random/images"].id.get_chunk_info(3).byte_offset
    content = bytearray(stored.read_bytes())
    content[place + 12] ^= 255
    stored.write_bytes(content)
    findings = list(verify(stored))
    assert "samples/random/images" in findings[0].words
    assert [finding.verdict for finding in findings[1:]] == ["PASS"] * 6


def test_a_broken_run_inside_a_sweep_is_named(tmp_path):
    path = Path(shutil.copy(STORED / "format1_sweep.h5", tmp_path / "sweep.h5"))
    with h5py.File(path) as file:
        name = sorted(file["runs"])[1]
    sealed_again(path, set_value("ledger/to_step", 1, 39), f"/runs/{name}")
    assert failed(path)["ledger"].startswith(f"{name}: 2 stays make 39 steps")
    with h5py.File(path, "r+") as file:
        file[f"runs/{name}/train/loss"][0] = 7
    assert f"runs/{name}/train/loss" in next(verify(path)).words


@pytest.mark.parametrize(
    "name, frechet, verdict",
    [("cifar100_features_x", 2.0, "PASS"), ("cifar100_features_x", 2.1, "FAIL"), ("another", 2.0, "FAIL")],
)
def test_a_score_of_drawn_images_is_held_against_one_drawn_again_and_never_against_itself(
    name, frechet, verdict, make_record, tmp_path, monkeypatch
):
    """The drawing itself, which takes minutes, is a fake here that writes what it is told to."""
    config = load_job("cifar100_ddpm_convnext")
    passport = {
        "extractor": "cifar100_features",
        "sampler": "ddim",
        "steps": 5,
        "guidance_scale": 1.0,
        "eta": 0.5,
        "weights": "ema",
        "images": 600,
        "sets_of_seeds": 1,
        "first_seed": 7,
        "reference": "test",
    }
    record = make_record(config=config.model_dump(mode="json"), fingerprint=config.fingerprint, scores={})
    write_results(tmp_path / "a.h5", record)
    stored = {"cifar100_features_x": Score({"frechet": [2.0], "kernel_distance": [0.1]}, passport)}
    add_scores(tmp_path / "a.h5", stored, reads_test=False)
    asked = []

    def draw(request, _processes):
        asked.append(request)
        again = Score({"frechet": [frechet], "kernel_distance": [0.1]}, passport)
        add_scores(Path(request.output), {name: again}, reads_test=False)

    monkeypatch.setattr("hpcvision.launch.generate.generate_here", draw)
    found = Drawn("cifar100_features_x")(load(tmp_path / "a.h5"))
    assert found.verdict == verdict, found.words
    (request,) = asked
    assert request.archive != str(tmp_path / "a.h5")
    assert (request.config["sample"]["eta"], request.config["sample"]["steps"]) == (0.5, 5)
    assert (request.options["seed"], request.options["images"], request.weights) == (7, 600, ["ema"])
