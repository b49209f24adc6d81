"""`hpcvision results`, `plot` and `gallery` on archives, as a user calls them."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from hpcvision.config import AddNISTCNNConfig, DataConfig, OptimConfig, RunConfig
from hpcvision.report.several import pareto
from hpcvision.results.record import Score
from hpcvision.results.writer import add_scores, write_results

STORED = Path(__file__).parents[1] / "data"


@pytest.fixture
def runs(make_record, tmp_path):
    """A folder with three runs that differ in seed, learning rate and accuracy."""
    folder = tmp_path / "runs"
    for seed in range(3):
        config = RunConfig(
            name="tiny",
            seed=seed,
            model=AddNISTCNNConfig(width=0.05),
            data=DataConfig(source="synthetic"),
            optim=OptimConfig(learning_rate=0.1 / (seed + 1)),
        )
        low, value, high = 0.5 + 0.1 * seed, 0.52 + 0.1 * seed, 0.54 + 0.1 * seed
        scores = {"accuracy": value, "accuracy_low": low, "accuracy_high": high, "loss": 2.0 - seed}
        record = make_record(config=config.model_dump(mode="json"), fingerprint=config.fingerprint, scores=scores)
        write_results(folder / f"run-{seed}" / "results.h5", record)
    return folder


def listed(out):
    """The first column of the table."""
    return [line.split()[0] for line in out.splitlines()[1:]]


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], ["run-0", "run-1", "run-2"]),
        (["--where", 'model.kind == "addnist_cnn" and accuracy > 0.6'], ["run-1", "run-2"]),
        (["--where", "optim.learning_rate < 0.04"], ["run-2"]),
        (["--sort=-accuracy"], ["run-2", "run-1", "run-0"]),
        (["--sort", "optim.learning_rate"], ["run-2", "run-1", "run-0"]),
        (["--where", "seed in [0, 2]", "--sort", "loss"], ["run-2", "run-0"]),
    ],
)
def test_runs_are_listed_by_condition_and_order(words, expected, call, runs):
    code, out, _ = call("results", "list", runs, *words)
    assert code == 0
    assert listed(out) == expected


def test_a_sweep_is_a_row_of_its_own(call, runs):
    (runs / "x-sweep").mkdir()
    shutil.copy(STORED / "format1_sweep.h5", runs / "x-sweep" / "sweep.h5")
    _, out, _ = call("results", "list", runs)
    assert re.search(r"^x-sweep +sweep, finished +best validation accuracy 0\.\d{4} of 2 trials", out, re.M)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--where", "model.kid == 3"], "no run has 'model.kid'; did you mean 'model.kind'"),
        (["--where", "print(1)"], "'print(1)' is not understood"),
        (["--sort", "beauty"], "no run has 'beauty'"),
    ],
)
def test_a_bad_condition_or_order_is_one_line(words, message, call, runs):
    code, _, err = call("results", "list", runs, *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_show_tells_scores_with_intervals_ledger_and_settings(call):
    code, out, _ = call("results", "show", STORED / "format1_run.h5")
    assert code == 0
    assert re.search(r"^test accuracy +72\.\d\d % \(71\.\d\d to 73\.\d\d, 95 % Wilson interval\)", out, re.M)
    assert "features_test_ema_ddim_5 frechet" in out
    assert re.search(r"^2 +job-1 +node1 +2 +20 +40 +finished", out, re.M)
    assert re.search(r"^optim\.learning_rate +0\.\d+", out, re.M)


def test_show_of_a_sweep_has_the_best_trial_first_and_the_winner(call):
    code, out, _ = call("results", "show", STORED / "format1_sweep.h5")
    assert code == 0
    assert "stored: 2 runs, finished, objective validation accuracy" in out
    assert re.search(r"^winner: \w+, test accuracy 72", out, re.M)


def test_compare_ranks_scores_that_were_measured_alike(call, runs):
    code, out, _ = call("results", "compare", runs / "run-0", runs / "run-2")
    assert code == 0
    assert re.search(r"^optim\.learning_rate +0\.1 +0\.0333", out, re.M)
    assert re.findall(r"^validation accuracy at step (\d+) +([\d.]+) +([\d.]+)$", out, re.M) == [
        ("20", "0.675", "0.675"),
        ("40", "0.6875", "0.6875"),
    ]
    assert re.search(r"accuracy: A 52\.00 % .*B 72\.00 % .*; B is better$", out, re.M)
    assert re.search(r"loss: A 2\.0000, B 0\.0000; B is better, by a difference whose uncertainty is not known", out)


def test_compare_says_when_intervals_meet(call, runs, make_record):
    near = {"accuracy": 0.53, "accuracy_low": 0.51, "accuracy_high": 0.55}
    write_results(runs / "near" / "results.h5", make_record(scores=near))
    _, out, _ = call("results", "compare", runs / "run-0", runs / "near")
    assert "B is ahead, but the intervals meet" in out


def test_compare_refuses_to_rank_scores_of_other_images_and_names_the_field(call, runs, make_record):
    data = {"name": "synthetic digits", "source": "synthetic", "test_sha256": "1" * 64}
    write_results(runs / "other" / "results.h5", make_record(data=data))
    code, out, _ = call("results", "compare", runs / "run-0", runs / "other")
    assert code == 0
    assert f"not ranked, as the passports differ: images_sha256 is '{'0' * 64}' and '{'1' * 64}'" in out
    assert "better" not in out


def test_compare_refuses_to_rank_drawn_images_of_another_number_of_steps(call, runs):
    for name, steps, device in (("run-0", 20, "cpu"), ("run-1", 50, "cuda"), ("run-2", 20, "cuda")):
        passport = {"extractor": "x", "sampler": "ddim", "steps": steps, "device": device}
        add_scores(
            runs / name / "results.h5", {f"x_{steps}": Score({"frechet": [1.0, 2.0]}, passport)}, reads_test=False
        )
    _, out, _ = call("results", "compare", runs / "run-0", runs / "run-1")
    assert "x_20 and x_50" in out
    assert "not ranked, as the passports differ: steps is 20 and 50" in out
    _, out, _ = call("results", "compare", runs / "run-0", runs / "run-2")
    assert "frechet: A 1.5000 (0.7929 to 2.2071" in out
    assert "; equal" in out


def test_export_gives_the_same_numbers_in_every_form(call, tmp_path):
    file = STORED / "format1_sweep.h5"
    _, out, _ = call("results", "export", file, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    _, out, _ = call("results", "export", file, "--json")
    as_json = json.loads(out)
    _, out, _ = call("results", "export", file, "--markdown")
    lines = out.splitlines()
    code, out, _ = call("results", "export", file, "--parquet", "-o", tmp_path / "t.parquet")
    assert code == 0
    frame = pd.read_parquet(tmp_path / "t.parquet")
    with h5py.File(file) as archive:
        expected = archive["trials/objective"][()].tolist()
    assert [float(row["objective"]) for row in rows] == expected
    assert [row["objective"] for row in as_json] == pytest.approx(expected)
    assert frame["objective"].tolist() == expected
    assert len(lines) == 4
    assert lines[0].startswith("| label | ")
    assert lines[2].count(" | ") == lines[0].count(" | ")


@pytest.mark.parametrize("name", ["train", "evaluate", "ledger", "summary"])
def test_every_table_of_a_run_can_be_exported(name, call, tmp_path):
    code, _, _ = call(
        "results", "export", STORED / "format1_run.h5", "--csv", "--table", name, "-o", tmp_path / "a.csv"
    )
    assert code == 0
    frame = pd.read_csv(tmp_path / "a.csv")
    assert len(frame) == {"train": 40, "evaluate": 5, "ledger": 2, "summary": 1}[name]
    if name == "summary":
        assert frame["test_accuracy_low"][0] < frame["test_accuracy"][0] < frame["test_accuracy_high"][0]
        assert frame["model.kind"][0] == "addnist_cnn"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--csv", "--json"], "give one of --csv, --parquet, --json, --markdown"),
        (["--parquet"], "--parquet needs a file"),
        (["--csv", "--table", "x"], "--table=x: a run has train, evaluate, ledger, summary"),
        (["--csv", "-o", "missing.h5/a.csv"], "cannot write"),
    ],
)
def test_a_bad_export_is_one_line(words, message, call, tmp_path):
    (tmp_path / "missing.h5").touch()
    code, _, err = call("results", "export", STORED / "format1_run.h5", *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_merge_says_how_many_runs_there_are_and_goes_on_without_the_unreadable(call, runs):
    (runs / "run-1" / "results.h5").write_bytes(b"nothing")
    code, out, err = call("results", "merge", *sorted(runs.glob("*")), runs / "run-0", "-o", "all.h5")
    assert code == 2
    assert out == "all.h5: 2 runs; 1 that were there twice are kept once\n"
    assert f"{runs / 'run-1/results.h5'} is not a readable HDF5 file" in err
    code, out, _ = call("results", "verify", "all.h5")
    assert "PASS  trials      2 rows, 2 runs" in out


def test_verify_exits_with_1_when_something_is_wrong(call, tmp_path):
    path = Path(shutil.copy(STORED / "format1_run.h5", tmp_path / "a.h5"))
    assert call("results", "verify", path)[0] == 0
    with h5py.File(path, "r+") as file:
        file["train/loss"][3] = 9
    code, out, _ = call("results", "verify", path)
    assert code == 1
    assert "FAIL  hashes      changed, missing or added since it was written: train/loss\n" in out


def test_several_runs_are_drawn_over_each_other_and_a_sweep_against_what_it_turned(call, runs):
    code, out, _ = call("plot", *sorted(runs.glob("*")), "-o", "curves.png")
    assert (code, out) == (0, "curves.png\n")
    assert imread("curves.png").std() > 0.05
    shutil.copy(STORED / "format1_sweep.h5", "sweep.h5")
    code, out, _ = call("plot", "sweep.h5")
    assert (code, out) == (0, "sweep.png\n")
    assert imread("sweep.png").std() > 0.05


def test_the_front_has_the_best_for_every_cost():
    costs, objectives = np.array([3, 1, 2, 4, 4]), np.array([0.5, 0.2, 0.6, 0.7, 0.9])
    assert pareto(costs, objectives, larger_is_better=True) == ([1, 2, 4], [0.2, 0.6, 0.9])
    assert pareto(costs, -objectives, larger_is_better=False) == ([1, 2, 4], [-0.2, -0.6, -0.9])


def test_the_same_noise_of_several_runs_is_laid_side_by_side(call, runs):
    code, out, _ = call("gallery", runs / "run-0", runs / "run-1", "-o", "noise.png")
    assert (code, out) == (0, "noise.png\n")
    with h5py.File(runs / "run-1" / "results.h5", "r+") as file:
        file["samples/random/seeds"][0] = 7
    code, _, err = call("gallery", runs / "run-0", runs / "run-1", "-o", "noise.png")
    assert code == 2
    assert "was drawn from other seeds or classes" in err


def test_a_run_that_lacks_something_does_not_end_the_list(call, runs):
    with h5py.File(runs / "run-1" / "results.h5", "r+") as file:
        del file["scores/test"].attrs["accuracy_low"]
    with h5py.File(runs / "run-2" / "results.h5", "r+") as file:
        file.attrs["config_json"] = "[1]"
    code, out, err = call("results", "list", runs)
    assert code == 2
    assert listed(out) == ["run-0", "run-1", "run-2"]
    assert out.count("unreadable") == 2
    assert err.count("\n") == 2


def test_a_merged_file_and_the_folder_of_a_sweep_are_listed(call, tmp_path):
    folder = tmp_path / "a-sweep"
    folder.mkdir()
    shutil.copy(STORED / "format1_sweep.h5", folder / "sweep.h5")
    shutil.copy(STORED / "format1_run.h5", folder / "run.h5")
    code, out, _ = call("results", "list", folder, "--sort", "name")
    assert code == 0
    assert sorted(listed(out)) == ["run.h5", "sweep.h5"]


def test_words_of_a_file_are_not_taken_for_markup(call, tmp_path):
    path = Path(shutil.copy(STORED / "format1_run.h5", tmp_path / "a.h5"))
    with h5py.File(path, "r+") as file:
        file["ledger/reason"][0] = "killed [/run/x]"
        file["scores"].move("features_test_ema_ddim_5", "x[b]_test")
    code, out, _ = call("results", "show", path)
    assert code == 0
    assert "killed [/run/x]" in out
    assert "x[b]_test frechet" in out
    assert call("results", "verify", path, "--scores")[0] == 1


def test_compare_ranks_no_number_that_is_none_and_no_times_of_other_machines(call, runs):
    with h5py.File(runs / "run-0" / "results.h5", "r+") as file:
        file["scores/test"].attrs["loss"] = np.nan
    for name, device, seconds in (("run-0", "cpu", 0.2), ("run-1", "cuda", 0.01)):
        score = Score({"frechet": [1.0, 2.0], "seconds_per_image": [seconds] * 2}, {"extractor": "x", "device": device})
        add_scores(runs / name / "results.h5", {"x": score}, reads_test=False)
    _, out, _ = call("results", "compare", runs / "run-0", runs / "run-1")
    assert "; not ranked, as one is no number" in out
    assert "seconds per image" not in out
    assert "frechet: A 1.5000" in out


def test_an_export_never_takes_the_place_of_an_archive_and_keeps_every_digit(call, tmp_path):
    path = Path(shutil.copy(STORED / "format1_run.h5", tmp_path / "a.h5"))
    with h5py.File(path, "r+") as file:
        file["train/seconds"][0] = 1.2345678901234567e-11
    code, _, err = call("results", "export", path, "--csv", "-o", path)
    assert code == 2
    assert "would be taken for an archive" in err
    _, out, _ = call("results", "export", path, "--json")
    assert json.loads(out)[0]["seconds"] == 1.2345678901234567e-11


@pytest.mark.parametrize(
    "command",
    [
        *("results list", "results show", "results verify", "results export --csv", "results merge -o all.h5"),
        *("plot", "report", "gallery", "train", "status --runs"),
    ],
)
def test_a_name_that_is_too_long_is_one_line(command, call):
    code, _, err = call(*command.split(), 300 * "a")
    assert code == 2
    assert len(err.splitlines()) == 1, err
