"""The command line loads little, helps with examples, and tells a mistake in one line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from matplotlib.image import imread
from rich.text import Text

from hpcvision import cli
from hpcvision.config.catalogue import load_job
from hpcvision.results.writer import write_results

HEAVY = {"torch", "torchvision", "ray", "h5py", "submitit", "matplotlib", "pandas", "numpy", "torch_fidelity"}
PROGRAM = f"""
import sys
from hpcvision.cli import main
sys.argv[0] = "hpcvision"
try:
    main()
finally:
    print("LOADED", *sorted(set(sys.modules) & set({HEAVY})), file=sys.stderr)
"""
WIDEST = 100


def commands(command=None, path=()):
    """The words of every command and group of commands, the program itself first."""
    command = command or typer.main.get_command(cli.app)
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def run(*words):
    """Exit code, output and error output of a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def fits(text):
    return max(len(line.rstrip()) for line in text.splitlines()) <= WIDEST


@pytest.mark.parametrize("words", [*commands()], ids=lambda words: " ".join(words) or "hpcvision")
def test_help_has_an_example_and_loads_no_large_library(words):
    code, out, err = run(*words, "--help")
    assert code == 0
    assert "Example" in out
    assert "hpcvision " + " ".join(words) in out.replace("\n", " ")
    assert err.strip() == "LOADED"


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_no_word_of_a_help_text_is_taken_for_markup(words):
    """Rich drops what stands in brackets when it looks like a style."""
    command = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]
    for text in filter(None, [command.help, *(getattr(option, "help", None) for option in command.params)]):
        assert Text.from_markup(text).plain == text


def test_every_command_of_the_manual_is_there():
    wanted = {"jobs", "models", "show", "train", "submit", "sweep", "plot", "gallery"}
    wanted |= {"data fetch", "data status", "results list"}
    assert wanted <= {" ".join(words) for words in commands()}


@pytest.mark.parametrize(
    "words, message",
    [
        (["show", "addnist_cn"], "there is no job named 'addnist_cn'; did you mean 'addnist_cnn'?"),
        (["show", "missing.py"], "'missing.py' does not exist"),
        (
            ["show", "addnist_cnn", "optim.learning_rat=1"],
            "unknown key 'optim.learning_rat'; did you mean 'optim.learning_rate'?",
        ),
        (["train", "addnist_cnn", "train.steps=many"], "train.steps='many'"),
        (["train", "addnist_cnn", "train.steps=10001"], "is over the cap of 10,000 optimisation steps"),
        (["submit", "addnist_cnn", "name=a;b"], "name='a;b'"),
        (["plot", "missing.h5"], "missing.h5 does not exist"),
        (["gallery", "missing.h5"], "missing.h5 does not exist"),
        (["data", "status", "cifar"], "there is no data set 'cifar'"),
        (["results", "list", "missing"], "there is no folder missing"),
    ],
)
def test_a_mistake_is_told_in_one_line_on_standard_error_with_exit_code_2(call, words, message):
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert err.startswith(f"hpcvision: {message}") or message in err
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_a_mistake_shows_no_traceback_in_a_process_of_its_own_and_loads_no_torch():
    code, _, err = run("show", "addnist_cnn", "optim.learning_rat=1")
    assert code == 2
    assert err.splitlines() == [
        "hpcvision: unknown key 'optim.learning_rat'; did you mean 'optim.learning_rate'?",
        "LOADED",
    ]


def test_a_model_over_the_cap_is_refused_before_a_folder_is_made(call, tmp_path):
    code, _, err = call("train", "addnist_cnn", "model.width=2", "data.source=synthetic")
    assert code == 2
    assert "the cap for task.kind=classify is below 100,000; try model.width=1.007" in err
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_split_is_refused_before_a_folder_is_made(call, tmp_path):
    code, _, err = call("train", "addnist_cnn", "data.source=synthetic", "--processes", "3")
    assert code == 2
    assert "train.global_batch_size=64 cannot be split over 3 processes" in err
    assert list(tmp_path.iterdir()) == []


def test_jobs_lists_every_job(call):
    code, out, _ = call("jobs")
    assert code == 0
    assert re.search(r"^cifar100_baby_mobilenet +capped +classify +baby_mobilenet +cifar100 +10,000 +512$", out, re.M)
    assert re.search(r"^addnist_cnn +capped +classify +addnist_cnn +addnist +10,000 +64$", out, re.M)
    assert fits(out)


def test_models_lists_every_model_with_its_cost_and_cap(call):
    _, out, _ = call("models")
    assert re.search(r"^baby_mobilenet +97,584 +100,000 +9,718,752 +1\.012 ", out, re.M)
    assert re.search(r"^addnist_cnn +98,740 +100,000 +2,514,944 +1\.007 ", out, re.M)
    assert re.search(r"^convnext_unet +960,223 +1,000,000 +130,775,552 +1\.027 ", out, re.M)
    assert fits(out)


def test_show_gives_count_cap_fingerprint_and_the_share_of_every_separable_layer(call):
    _, out, _ = call("show", "cifar100_baby_mobilenet")
    assert "97,584 (97.6 % of the cap of 100,000)" in out
    assert "9,718,752 per image" in out
    assert f"fingerprint    {load_job('cifar100_baby_mobilenet').fingerprint}" in out
    shares = re.findall(r"DepthwiseSeparable .* ([\d.]+) %$", out, re.M)
    # (9 M + M + M N + N) / (9 M N + N) for the paper's three blocks
    wanted = [(10 * m + m * n + n) / (9 * m * n + n) for m, n in ((64, 120), (120, 220), (220, 120))]
    assert shares == [f"{100 * share:.1f}" for share in wanted]
    assert fits(out)


def test_show_resolves_the_changes(call):
    _, out, _ = call("show", "cifar100_baby_mobilenet", "model.width=0.5", "optim.learning_rate=3e-4")
    assert re.search(r"^optim\.learning_rate +0\.0003 *$", out, re.M)
    assert re.search(r"^model\.width +0\.5 *$", out, re.M)


def test_show_says_that_a_model_is_over_the_cap(call):
    code, out, _ = call("show", "addnist_cnn", "model.width=2")
    assert code == 0
    assert "OVER the cap of 100,000" in out


def test_show_says_that_an_auxiliary_run_enters_no_claim(call):
    _, out, _ = call("show", "addnist_cnn", "model.width=2", "track=auxiliary")
    assert "auxiliary: no cap, no claim" in out
    assert "addnist_cnn_auxiliary-" in out


def test_data_status_of_the_drawn_images_is_ready(call):
    _, out, _ = call("data", "status", "synthetic")
    assert re.search(r"^synthetic +synthetic 32x32, 100 classes +10,000 \+ 1,000 \+ 2,000", out, re.M)


def test_data_status_names_what_is_missing_and_how_to_get_it(call):
    _, out, _ = call("data", "status")
    assert re.search(r"^cifar100 +CIFAR-100 +missing: hpcvision data fetch cifar100", out, re.M)
    assert fits(out)


def test_data_status_of_one_data_set_names_the_files_that_are_missing(call):
    _, out, _ = call("data", "status", "addnist")
    assert "missing: train-images-idx3-ubyte" in out


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plot_draws_the_graph_of_an_archive_and_prints_its_path(call, archive, suffix):
    code, out, _ = call("plot", archive, "-o", f"graphs/graph.{suffix}")
    assert code == 0
    assert out == f"graphs/graph.{suffix}\n"
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert Path(f"graphs/graph.{suffix}").read_bytes().startswith(magic)


def test_plot_takes_the_folder_of_a_run_and_puts_the_graph_into_it(call, archive):
    _, out, _ = call("plot", archive.parent)
    assert out == f"{archive.parent / 'training.png'}\n"
    assert (archive.parent / "training.png").stat().st_size > 10_000


def test_gallery_draws_the_samples_of_an_archive_as_the_run_itself_does(call, archive):
    _, out, _ = call("gallery", archive.parent)
    assert out == f"{archive.parent / 'samples.png'}\n"
    code, out, _ = call("gallery", archive, "-o", "grid.png")
    assert (code, out) == (0, "grid.png\n")
    assert np.array_equal(imread("grid.png"), imread(archive.parent / "samples.png"))


def test_gallery_says_when_there_is_nothing_to_show(call, make_record, tmp_path):
    write_results(tmp_path / "classifier.h5", make_record(samples={}, interpolations={}))
    code, _, err = call("gallery", tmp_path / "classifier.h5")
    assert code == 2
    assert "classifier.h5 holds no samples" in err
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("command", ["plot", "gallery"])
@pytest.mark.parametrize("name", ["graph.xyz", "graph", "results.h5/graph.png"])
def test_a_picture_that_cannot_be_drawn_or_written_is_refused(call, archive, command, name):
    code, _, err = call(command, archive, "-o", archive.parent / name)
    assert code == 2
    assert name in err
    assert err.count("\n") == 1


def test_results_list_shows_state_and_score_of_every_run(call, archive, tmp_path):
    folder = tmp_path / "runs" / "tiny-1"
    folder.mkdir(parents=True)
    archive.rename(folder / "results.h5")
    _, out, _ = call("results", "list")
    assert re.search(r"^tiny-1 +synthetic digits +finished +321 +40 +test 75\.00 %", out, re.M)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_can_be_made(shell):
    program = Path(sys.executable).with_name("hpcvision")
    environment = os.environ | {"_HPCVISION_COMPLETE": f"source_{shell}"}
    made = subprocess.run([program], env=environment, capture_output=True, text=True, check=True)
    assert "_HPCVISION_COMPLETE=complete_" in made.stdout


def test_completion_finishes_the_name_of_a_command():
    program = Path(sys.executable).with_name("hpcvision")
    asked = {"_HPCVISION_COMPLETE": "complete_bash", "COMP_WORDS": "hpcvision mod", "COMP_CWORD": "1"}
    made = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["models"]


def test_a_damaged_archive_is_one_row_of_the_list_and_does_not_end_it(call, archive, tmp_path):
    runs = tmp_path / "all"
    for name in ("good-0", "torn-0"):
        (runs / name).mkdir(parents=True)
        shutil.copy(archive, runs / name / "results.h5")
    (runs / "torn-0" / "results.h5").write_bytes(archive.read_bytes()[:1000])
    code, out, err = call("results", "list", runs)
    assert code == 2
    assert f"{runs / 'torn-0/results.h5'} is not a readable HDF5 file" in err
    assert re.search(r"^good-0 .*finished", out, re.M)
    assert re.search(r"^torn-0 .*unreadable", out, re.M)
