"""One run is one folder, and a file in it is whole or not there."""

import json
import os
import stat

import pytest

from hpcvision.config import apply
from hpcvision.errors import UserError
from hpcvision.rundir import RunDir, atomic_write, open_run, remove_half_written, runs_folder, write_json


def test_a_file_appears_only_when_its_block_ends(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"half"


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_can_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "file", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_what_kills_left_is_removed_and_nothing_else(tmp_path):
    kept = ["checkpoint.new", "checkpoint.pt", "config.json", "log.jsonl", "results.h5", "training.png", "samples.png"]
    kept += ["lock", ".mine"]
    left = [f".{name}.k2x_9ab" for name in kept[:1] + kept[2:7]]
    left += ["meeting-local-1-0.json", ".meeting-local-1-0.json.k2x_9ab"]
    for name in kept + left:
        (tmp_path / name).touch()
    remove_half_written(RunDir(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_the_folder_is_called_after_name_and_fingerprint_and_holds_the_configuration(config, tmp_path):
    rundir = open_run(config, tmp_path)
    assert rundir.folder == tmp_path / f"tiny-{config.fingerprint}"
    assert rundir.read_config() == config
    assert json.loads(rundir.config.read_text())["name"] == "tiny"


def test_the_folder_of_a_run_is_opened_again_and_takes_another_cadence(config, tmp_path):
    first = open_run(config, tmp_path)
    again = open_run(apply(config, {"cadence.log_every": 7}), tmp_path)
    assert again == first
    assert again.read_config().cadence.log_every == 7


def test_a_folder_that_holds_another_configuration_is_refused_with_the_keys_that_differ(config, tmp_path):
    rundir = open_run(config, tmp_path)
    write_json(rundir.config, apply(config, {"train.steps": 9}).model_dump(mode="json"))
    with pytest.raises(UserError, match=r"train\.steps \(9 there, 10000 now\)"):
        open_run(config, tmp_path)


def test_a_folder_without_a_configuration_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder \(it has no config\.json\)"):
        RunDir(tmp_path).read_config()


@pytest.mark.parametrize("text", ["{", '{"name": "x"}', '{"name": "x", "more": 1}', "3"])
def test_a_configuration_that_this_version_cannot_read_is_named_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as caught:
        RunDir(tmp_path).read_config()
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 120


def test_runs_go_where_the_option_says_else_the_environment_else_into_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("HPCVISION_RUNS", raising=False)
    assert str(runs_folder()) == "runs"
    monkeypatch.setenv("HPCVISION_RUNS", "/somewhere")
    assert str(runs_folder()) == "/somewhere"
    assert runs_folder(tmp_path) == tmp_path
