"""What a person is told when a run failed, and which settings reach submitit and the processes."""

import getpass
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcvision import provenance
from hpcvision.config import AddNISTCNNConfig, BabyMobileNetConfig, DataConfig, RunConfig, TrainConfig
from hpcvision.config.catalogue import load_job
from hpcvision.errors import UserError
from hpcvision.launch.local import choose_processes, failure
from hpcvision.launch.submit import visible_gpus
from hpcvision.models import build_model, source_of_model
from hpcvision.rundir import RunDir
from hpcvision.stopping import CtrlC

CRASH = "rank 1: Traceback (most recent call last):\n  File ...\nZeroDivisionError: division by zero\n"


def test_a_crash_prints_its_traceback_and_one_line_with_its_place_and_ends_with_code_3(tmp_path, capsys):
    (tmp_path / "FAILED.txt").write_text(CRASH)
    error = failure(RunDir(tmp_path), 0, 1, "")
    assert str(error) == (
        f"rank 1: ZeroDivisionError: division by zero; the traceback is above and in {tmp_path / 'FAILED.txt'}"
    )
    assert error.exit_code == 3
    assert capsys.readouterr().err == CRASH


def test_a_users_mistake_is_told_as_it_is_and_ends_with_code_2(tmp_path, capsys):
    (tmp_path / "FAILED.txt").write_text("rank 0: cannot read train\n")
    error = failure(RunDir(tmp_path), 0, 2, "")
    assert (str(error), error.exit_code) == ("rank 0: cannot read train", 2)
    assert capsys.readouterr().err == ""


def test_a_rank_that_could_write_no_file_is_heard_through_the_pipe(tmp_path):
    error = failure(RunDir(tmp_path), 0, 3, "rank 0: cannot write: No space left on device\n")
    assert (str(error), error.exit_code) == ("rank 0: cannot write: No space left on device", 3)


@pytest.mark.parametrize(
    "batch, cores, processes",
    # As many as there are cores; not below 32 images each; only numbers that split the batch evenly.
    [
        (512, 1, 1),
        (512, 2, 2),
        (512, 16, 16),
        (512, 64, 16),
        (64, 8, 2),
        (48, 8, 1),
        (96, 4, 3),
        (510, 4, 3),
        (16, 2, 1),
    ],
)
def test_a_run_on_cpus_gets_a_process_for_every_core_as_far_as_its_batch_allows(batch, cores, processes):
    config = RunConfig(name="x", model=BabyMobileNetConfig(), train=TrainConfig(global_batch_size=batch))
    assert choose_processes(config, cores) == processes


def test_a_model_whose_threads_are_faster_gets_one_process():
    model = AddNISTCNNConfig()
    data = DataConfig(source="addnist")
    assert choose_processes(RunConfig(name="x", model=model, data=data), places=8) == 1


def test_the_cores_are_those_of_the_affinity_mask(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5, 8})
    assert (
        choose_processes(RunConfig(name="x", model=BabyMobileNetConfig(), train=TrainConfig(global_batch_size=96))) == 3
    )


def test_a_submitted_run_gets_the_gpus_that_its_submitter_may_use(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus() == (2, 3)


def test_gpus_that_are_named_by_uuid_are_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2a")
    with pytest.raises(UserError, match="does not name GPUs by number"):
        visible_gpus()


def test_provenance_of_a_user_without_a_name_has_the_number(monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert provenance.user().isdigit()


def test_the_running_code_is_recorded_with_what_is_not_committed(tmp_path, monkeypatch):
    package = tmp_path / "hpcvision"
    package.mkdir()
    (package / "__init__.py").write_text("one\n")
    settings = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], [*settings, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr("hpcvision.__file__", str(package / "__init__.py"))
    address = "https://me:secret@example.org/us/code.git"
    subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", address], check=True)
    clean = provenance.git_commit()
    assert clean["git_repository"] == "https://example.org/us/code.git"
    assert (clean["git_dirty"], clean["git_diff"], len(clean["git_commit"])) == (False, "", 40)
    (package / "__init__.py").write_text("two\n")
    dirty = provenance.git_commit()
    assert dirty["git_dirty"]
    assert "-one\n+two" in dirty["git_diff"]
    (package / "__init__.py").write_text("ü" * 20_000 + "\n")
    assert len(json.dumps(provenance.git_commit()["git_diff"])) <= provenance.LONGEST_DIFF + 10
    assert provenance.git_commit()["git_diff"].endswith("[cut]")


@pytest.mark.parametrize(
    "remote, address",
    [
        ("https://token@example.org/us/code.git", "https://example.org/us/code.git"),
        ("ssh://git:secret@example.org:22/us/code", "ssh://git@example.org:22/us/code"),
        ("git@example.org:us/code.git", "git@example.org:us/code.git"),
        ("/srv/code", ""),
        ("file:///srv/code", ""),
        ("", ""),
    ],
)
def test_of_a_repository_s_address_neither_secrets_nor_folders_are_kept(remote, address):
    assert provenance.address(remote) == address


@pytest.mark.parametrize("name", [path.stem for path in (Path(__file__).parents[2] / "jobs").glob("*.py")])
def test_the_files_that_are_kept_with_the_weights_define_the_network_and_import_no_other_of_the_package(name):
    model = load_job(name).model
    kept = source_of_model(model)
    kind = type(build_model(model))
    assert any(f"class {kind.__name__}(nn.Module)" in text for text in kept.values())
    imported = {word for text in kept.values() for word in re.findall(r"from hpcvision\.([\w.]+) import", text)}
    paths = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in kept}
    # What the configuration says is in the archive, and neither errors nor random numbers are part of the network.
    assert {word for word in imported if not word.startswith(("config", "errors", "seeding"))} <= paths


def test_ctrl_c_while_drawing_is_raised_where_progress_is_told_and_nowhere_else():
    ctrl_c, told = CtrlC(), []
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        progress = ctrl_c.check(told.append)
        progress(1.0)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            progress(1.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [1.0]


@pytest.mark.parametrize("prepare", ["", "ctrl_c.check(print); signal.raise_signal(signal.SIGINT)"])
def test_ctrl_c_before_anything_is_drawn_and_a_second_one_end_at_once(prepare):
    code = f"""
import signal
from hpcvision.stopping import CtrlC
ctrl_c = CtrlC()
signal.signal(signal.SIGINT, ctrl_c)
{prepare}
signal.raise_signal(signal.SIGINT)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
