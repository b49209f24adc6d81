"""RESULTS.md and the archives that it is made of."""

import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.results import load
from hpcvision.results.record import Score
from hpcvision.results.reduce import reduce
from hpcvision.results.writer import add_scores, write_results
from hpcvision.verify import verify

ROOT = Path(__file__).parents[2]
MACHINE = {"gpus": [], "cpus_allowed": 2, "processor": "some", "torch": "2", "python": "3", "git_commit": "c"}
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
    ((name, score, *_),) = league.ours("tiny", runs, league.accuracy)
    assert name == "**tiny**"
    assert score == f"**{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}, 3 seeds**"
    other = config.model_dump(mode="json")
    other["optim"]["learning_rate"] = 0.5
    write_results(tmp_path / "other.h5", make_record(config=other, provenance=MACHINE))
    assert len(league.ours("tiny", [*runs, load(tmp_path / "other.h5")], league.accuracy)) == 2


@pytest.mark.parametrize("attribute, value, words", [("test_reads", 2, "2 times"), ("finished", False, "not finished")])
def test_an_archive_that_holds_no_claim_is_refused(attribute, value, words, league, make_record, tmp_path):
    write_results(tmp_path / "a.h5", make_record())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs[attribute] = value
    with pytest.raises(SystemExit, match=words):
        league.check(load(tmp_path / "a.h5"))


@pytest.mark.parametrize(
    "commits, words",
    [(["a+1b2c", "a"], "uncommitted changes"), (["a", "b"], "2 commits")],
)
def test_an_archive_whose_earlier_stays_had_other_code_is_refused(commits, words, league, make_record, tmp_path):
    ledger = [row | {"commit": commit} for row, commit in zip(make_record().ledger, commits, strict=True)]
    write_results(tmp_path / "a.h5", make_record(ledger=ledger, provenance=MACHINE))
    with pytest.raises(SystemExit, match=words):
        league.check(load(tmp_path / "a.h5"))


def generator(make_record, path, distances, job="cifar100_edm", changes=None, **passport):
    """An archive of a generator whose images have these distances: (sampler, steps) -> one for every set of images."""
    settings = apply(load_job(job), changes or {}).model_dump(mode="json")
    write_results(
        path, make_record(config=settings, name=job, provenance=MACHINE, confusion=None, scores={"loss": 1.5})
    )
    about = {"extractor": "cifar100_features", "reference": "test", "weights": "ema", "guidance_scale": 1.0}
    scores = {
        f"{sampler}_{steps}": Score(
            {"frechet": values},
            about | {"sampler": sampler, "steps": steps, "images": 10_000, "sets_of_seeds": len(values)} | passport,
        )
        for (sampler, steps), values in distances.items()
    }
    add_scores(path, scores, reads_test=True)
    return load(path)


def rows(league, runs, *others):
    return [row[1] for row in league.ours("some", runs, league.Distances("cifar100_features", [*others]))]


def test_a_generator_is_held_against_the_other_job_at_as_many_evaluations_an_image(league, make_record, tmp_path):
    ours = {("heun", 20): [0.8, 1.0, 1.2], ("heun", 50): [0.3, 0.4, 0.5]}
    one = generator(make_record, tmp_path / "a.h5", ours)
    other = generator(make_record, tmp_path / "b.h5", {("ddim", 50): [1.0, 1.0, 1.0]}, "cifar100_ddpm_convnext")
    assert rows(league, [one], other) == [
        "**1.0000 ± 0.2000, 20 evaluations an image, nothing to compare with, 1 seed**",
        "**0.40 (0.4000 ± 0.1000, 50 evaluations an image), 1 seed**",
    ]
    assert rows(league, [other], other) == ["**1.00 (1.0000 ± 0.0000, 50 evaluations an image), 1 seed**"]


def test_guidance_counts_twice_and_a_deviation_is_over_seeds_or_not_known(league, make_record, tmp_path):
    runs = [
        generator(make_record, tmp_path / f"{seed}.h5", {("heun", 25): [value]}, guidance_scale=2.0)
        for seed, value in enumerate((0.4, 0.6))
    ]
    other = generator(make_record, tmp_path / "b.h5", {("ddim", 50): [1.0]}, "cifar100_ddpm_convnext")
    assert rows(league, runs, other) == ["**0.50 (0.5000 ± 0.1414, 50 evaluations an image), 2 seeds**"]
    assert rows(league, runs[:1], other) == ["**0.40 (0.4000, 50 evaluations an image), 1 seed**"]


def test_distances_that_were_not_measured_alike_are_no_row(league, make_record, tmp_path):
    few = generator(make_record, tmp_path / "a.h5", {("heun", 50): [0.4]}, images=2000)
    many = generator(make_record, tmp_path / "b.h5", {("ddim", 50): [1.0]})
    within = generator(make_record, tmp_path / "c.h5", {("heun", 50): [0.4]}, guidance_interval=[0.2, 2.5])
    others = generator(make_record, tmp_path / "d.h5", {("heun", 20): [0.4]})
    twice = generator(make_record, tmp_path / "e.h5", {("heun", 20): [0.4], ("ddim", 20): [0.3]})
    trained_otherwise = generator(make_record, tmp_path / "f.h5", {("ddim", 50): [1.0]}, changes={"ema.beta": 0.5})
    for runs, against, words in (
        ([few], [many], "images is not the same"),
        ([few, many], [], "images is not the same"),
        ([within], [], "has no distance on cifar100_features"),
        ([many, others], [], "one score each"),
        ([twice], [], "one score each"),
        ([many], [many, trained_otherwise], "differ in more than the seed"),
    ):
        with pytest.raises(SystemExit, match=words):
            rows(league, runs, *against)


def test_a_generator_stands_on_the_page_without_an_accuracy_and_a_reduced_copy_says_so(league, make_record, tmp_path):
    run = generator(make_record, tmp_path / "a.h5", {("heun", 50): [0.4]})
    league.check(run)  # read for its loss, and for the distance
    assert "`results/a.h5`: ema weights, synthetic digits" in league.archives([run])
    reduce(run.path, tmp_path / "small.h5", significant_bits=16)
    words = league.archives([load(tmp_path / "small.h5")])
    assert f"reduced from {run.digest}, whose scores these are; ema weights alone, of 16 significant bits" in words
    add_scores(run.path, {}, reads_test=True)
    with pytest.raises(SystemExit, match="3 times"):
        league.check(load(run.path))
