"""RESULTS.md and the archives that it is made of."""

import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcvision.results import load
from hpcvision.results.writer import write_results
from hpcvision.verify import verify

ROOT = Path(__file__).parents[2]
MACHINE = {"gpus": [], "cpus_allowed": 2, "processor": "some"}
ARCHIVES = sorted((ROOT / "results").glob("*.h5"))


@pytest.fixture(scope="module")
def league():
    """The script that writes RESULTS.md."""
    spec = importlib.util.spec_from_file_location("league", ROOT / "benchmarks/league.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_md_is_what_the_archives_give(league):
    assert (ROOT / "RESULTS.md").read_text() == league.page()


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.name)
def test_an_archive_behind_a_row_is_below_3_megabytes_and_passes_verify(path):
    assert path.stat().st_size < 3_000_000
    assert [finding for finding in verify(path) if finding.verdict == "FAIL"] == []


def test_seeds_of_one_configuration_are_one_row_with_their_mean_and_deviation(league, make_record, config, tmp_path):
    runs = []
    for seed in range(3):
        path = tmp_path / f"{seed}.h5"
        settings = config.model_dump(mode="json") | {"seed": seed}
        write_results(path, make_record(config=settings, provenance=MACHINE))
        runs.append(load(path))
    accuracies = [100 * run.scores["test"].values["accuracy"].mean for run in runs]
    ((name, score, *_),) = league.ours("tiny", runs)
    assert name == "**tiny**"
    assert score == f"**{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}, 3 seeds**"
    other = config.model_dump(mode="json")
    other["optim"]["learning_rate"] = 0.5
    write_results(tmp_path / "other.h5", make_record(config=other, provenance=MACHINE))
    assert len(league.ours("tiny", [*runs, load(tmp_path / "other.h5")])) == 2


@pytest.mark.parametrize("attribute, value, words", [("test_reads", 2, "2 times"), ("finished", False, "not finished")])
def test_an_archive_that_holds_no_claim_is_refused(attribute, value, words, league, make_record, tmp_path):
    write_results(tmp_path / "a.h5", make_record())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs[attribute] = value
    with pytest.raises(SystemExit, match=words):
        league.check(load(tmp_path / "a.h5"))
