"""What the report's page says in words: commands that make the run again, charts of any settings, its size."""

import dataclasses
import json
import re
import shlex
import shutil
from html import unescape
from pathlib import Path

import h5py
import pytest

from hpcvision.config import apply, parse
from hpcvision.config.catalogue import load_job
from hpcvision.report.again import sweep_command, training_command
from hpcvision.report.page import write_page
from hpcvision.results import load, load_sweep
from hpcvision.results.merge import merge
from hpcvision.results.writer import write_results
from hpcvision.sweep.plan import make_plan

STORED = Path(__file__).parents[1] / "data"


def run_of(config, make_record, folder):
    """An archived run of a configuration; its weights are of another, which does not matter here."""
    write_results(folder / "a.h5", make_record(config=config.model_dump(mode="json"), fingerprint=config.fingerprint))
    return load(folder / "a.h5")


@pytest.mark.parametrize(
    "job, words",
    [
        ("addnist_cnn", []),
        ("addnist_cnn", ["model.width=0.3", "optim.betas=[0.8,0.9]", "optim.gradient_clip=1", "seed=3"]),
        ("cifar100_baby_mobilenet", ["train.precision=bf16", "data.augmentation.flip=false"]),
        ("cifar100_edm", ["model.kind=convnext_unet"]),
        ("cifar100_ddpm_small", ["model.kind=edm_unet", "model.width=0.25"]),
        ("demo_classifier", ["model.kind=baby_mobilenet", "model.width=0.7", "model.dropout=0.1"]),
    ],
)
def test_the_command_that_is_told_makes_the_same_run(job, words, make_record, tmp_path):
    config = apply(load_job(job), parse(words))
    run = run_of(config, make_record, tmp_path)
    command = training_command(run).split()
    assert command[:3] == ["hpcvision", "train", job]
    told = [word.strip("'") for word in re.sub(r", +", ",", training_command(run)).split()[3:]]
    assert apply(load_job(job), parse(told)).fingerprint == config.fingerprint


def test_a_run_of_a_job_file_of_its_own_gets_no_command(run_in_words, archive):
    assert run_in_words(archive).startswith("# of a job file of its own")


@pytest.fixture
def run_in_words():
    return lambda path: training_command(load(path))


def test_words_of_a_file_are_never_a_line_of_their_own_among_the_commands(archive, tmp_path):
    with h5py.File(archive, "r+") as file:
        settings = json.loads(file.attrs["config_json"]) | {"x\nrm -rf ~ #": 1}
        file.attrs["config_json"] = json.dumps(settings)
        file.attrs["provenance_json"] = json.dumps({"git_commit": "abc\nrm -rf ~"})
    text = write_page([archive], tmp_path / "a.html").read_text()
    (block,) = re.findall(r"<pre [^>]*><code>(.*?)</code></pre>", text, re.DOTALL)
    lines = unescape(block).splitlines()
    assert lines[0] == "git checkout 'abc"  # quoted: what follows belongs to the word
    assert lines[1] == "rm -rf ~'"
    assert lines[2].startswith("# ")
    assert "rm -rf" in lines[2]
    assert len(lines) == 4


def test_a_merged_sweep_claims_no_selection_and_no_command(archive, tmp_path):
    merge([archive], tmp_path / "merged.h5")
    text = write_page([tmp_path / "merged.h5"], tmp_path / "a.html").read_text()
    assert "# merged from several archives" in text
    assert "Selection is on the validation images" not in text
    assert sweep_command(load_sweep(STORED / "format1_sweep.h5")) == "# of a sweep file of its own, stored.py"


def test_the_command_of_a_shipped_sweep_has_what_it_was_given(make_sweep, tmp_path):
    words = ["optim.betas=[0.8, 0.9]", "train.steps=100"]
    plan = make_plan("demo", parse(words), trials=2)
    path = make_sweep(tmp_path / "sweep.h5", [({}, 0.5)], facts={"given": plan.given})
    with h5py.File(path, "r+") as file:
        file.attrs["name"] = "demo"
    told = shlex.split(sweep_command(load_sweep(path)))
    assert told[:3] == ["hpcvision", "sweep", "demo"]
    assert parse(told[3:-2]) == parse(words)
    assert told[-2:] == ["--trials", "2"]
    with h5py.File(path, "r+") as file:
        file.attrs["given"] = "an unclosed 'quote"
    assert sweep_command(load_sweep(path)).startswith("# what the sweep demo was given cannot be read")


def charts(text):
    """Label of the horizontal axis -> what the page's script draws."""
    found = [json.loads(part) for part in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    return {spec["x"]: spec for spec in found}


def test_settings_of_any_kind_are_drawn_with_every_trial(make_sweep, tmp_path):
    turned = [
        {"optim.nesterov": True, "optim.gradient_clip": None, "optim.learning_rate": 1e-5, "optim.schedule": "cosine"},
        {"optim.nesterov": False, "optim.gradient_clip": 1.0, "optim.learning_rate": 1e-1},
        {"optim.nesterov": True, "optim.gradient_clip": 0.5, "optim.learning_rate": 1e-3, "optim.schedule": "linear"},
    ]
    sweep = make_sweep(tmp_path / "sweep.h5", zip(turned, [0.0, 0.1, 0.2], strict=True))
    page = write_page([sweep], tmp_path / "a.html").read_text()
    drawn = charts(page)
    assert all(len(drawn[key]["series"][0]["x"]) == 3 for key in turned[0])
    assert drawn["optim.nesterov"]["ticks"] == ["False", "True"]
    assert drawn["optim.gradient_clip"]["ticks"] == ["0.5", "1.0", "not set"]
    assert drawn["optim.schedule"]["ticks"] == ["cosine", "linear", "not set"]
    assert drawn["optim.learning_rate"]["log"] is True
    assert "0 at cosine to 0.2 at linear" in page


def test_a_sweep_without_a_trial_makes_a_page(make_sweep, tmp_path):
    text = write_page([make_sweep(tmp_path / "sweep.h5", [])], tmp_path / "a.html").read_text()
    assert "0 runs, objective validation accuracy" in text


def test_an_archive_that_is_given_twice_is_on_the_page_once(archive, tmp_path):
    text = write_page([archive, archive], tmp_path / "a.html").read_text()
    assert text.count("<h2>") == 1


def test_pictures_that_have_no_room_are_left_out_and_named(make_record, tmp_path):
    random = make_record().samples["random"]
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 96, 3), dtype=np.uint8)
    one = dataclasses.replace(random, images=noise, labels=np.zeros(64, int), seeds=np.arange(64))
    write_results(tmp_path / "a.h5", make_record(samples={f"set {number}": one for number in range(4)}))
    page = write_page([tmp_path / "a.h5"], tmp_path / "a.html")
    assert page.stat().st_size < 5_000_000
    text = page.read_text()
    assert "samples set 3 would make the page too large; see hpcvision gallery" in text
    assert text.count("<img ") >= 2


def test_a_page_is_made_in_a_folder_whose_name_is_no_text(archive, tmp_path):
    folder = tmp_path / "lat\udce9"
    folder.mkdir()
    shutil.copy(archive, folder / "results.h5")
    assert write_page([folder / "results.h5"], tmp_path / "a.html").stat().st_size > 10_000
