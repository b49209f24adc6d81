"""A checkpoint is whole or not there: every kill and every damaged byte leads to an older one or to one clear line."""

import os
import pickle
import zipfile

import pytest
import torch

from hpcvision.errors import UserError
from hpcvision.rundir import RunDir
from hpcvision.training import checkpoint


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


def content(step):
    stream = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "seconds": 1.5,
        "config": {"name": "x", "betas": [0.9, 0.999], "clip": None},
        "model": {"weight": torch.randn(3, 4, generator=stream), "count": torch.tensor(step)},
    }


def names_in(rundir):
    return sorted(path.name for path in rundir.folder.iterdir())


def cut_to_nothing(path):
    path.write_bytes(b"")


def damage_weights(path):
    """One bit of the stored numbers changed."""
    with zipfile.ZipFile(path) as archive:
        stored = next(archive.open(name).read() for name in archive.namelist() if name.endswith("data/0"))
    data = path.read_bytes()
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, stored[:-1] + bytes([stored[-1] ^ 1])))


def test_what_is_saved_is_what_is_loaded(rundir):
    checkpoint.save(rundir, content(7))
    loaded, said = checkpoint.load(rundir)
    assert said == ""
    assert loaded.pop("format") == checkpoint.FORMAT
    torch.testing.assert_close(loaded.pop("model"), content(7).pop("model"), rtol=0, atol=0)
    assert loaded == {key: value for key, value in content(7).items() if key != "model"}


def test_without_a_checkpoint_there_is_none(rundir):
    assert checkpoint.load(rundir) == (None, "")


def test_the_newest_two_are_kept_and_nothing_else(rundir):
    for step in (1, 2, 3):
        checkpoint.save(rundir, content(step))
    assert checkpoint.read(rundir.checkpoint)["step"] == 3
    assert checkpoint.read(rundir.previous_checkpoint)["step"] == 2
    assert names_in(rundir) == ["checkpoint.previous.pt", "checkpoint.pt"]


@pytest.mark.parametrize("ruin", [damage_weights, cut_to_nothing])
def test_when_the_newest_is_damaged_the_older_is_read_and_this_is_said(rundir, ruin):
    for step in (1000, 2000):
        checkpoint.save(rundir, content(step))
    ruin(rundir.checkpoint)
    loaded, said = checkpoint.load(rundir)
    assert loaded["step"] == 1000
    assert said == "checkpoint.pt is damaged; going on from checkpoint.previous.pt at step 1,000"


def test_when_both_are_damaged_the_user_is_told_what_to_do(rundir):
    for step in (1, 2):
        checkpoint.save(rundir, content(step))
    damage_weights(rundir.checkpoint)
    damage_weights(rundir.previous_checkpoint)
    with pytest.raises(UserError, match=r"\(checkpoint\.pt, checkpoint\.previous\.pt\); start again with --fresh"):
        checkpoint.load(rundir)


def test_a_checkpoint_cut_off_at_any_length_is_recognised(rundir):
    for step in (1, 2):
        checkpoint.save(rundir, content(step))
    whole = rundir.checkpoint.read_bytes()
    for length in [*range(0, len(whole), 23), *range(len(whole) - 60, len(whole))]:
        rundir.checkpoint.write_bytes(whole[:length])
        assert checkpoint.load(rundir)[0]["step"] == 1, length


def test_a_changed_byte_anywhere_is_recognised_or_harmless(rundir):
    for step in (1, 2):
        checkpoint.save(rundir, content(step))
    whole = rundir.checkpoint.read_bytes()
    wanted = content(2)["model"]["weight"]
    # Every byte of the directory at the end, which no checksum covers; every seventh of the rest.
    for place in [*range(0, len(whole) - 700, 7), *range(len(whole) - 700, len(whole))]:
        for flip in (0x08, 0xFF):
            changed = bytearray(whole)
            changed[place] ^= flip
            rundir.checkpoint.write_bytes(bytes(changed))
            loaded, _ = checkpoint.load(rundir)
            assert loaded["step"] == 1 or torch.equal(loaded["model"]["weight"], wanted), place


def test_a_kill_between_the_two_renames_loses_nothing(rundir):
    for step in (1, 2, 3):
        checkpoint.save(rundir, content(step))
    # As save() leaves the folder after its first rename: 3 is written, 2 is set aside, nothing is called checkpoint.pt.
    rundir.checkpoint.replace(rundir.folder / "checkpoint.new")
    loaded, said = checkpoint.load(rundir)
    assert (loaded["step"], said) == (3, "")


def test_a_kill_before_the_first_rename_loses_nothing(rundir):
    for step in (1, 2):
        checkpoint.save(rundir, content(step))
    checkpoint.save(RunDir(rundir.folder / "other"), content(3))
    (rundir.folder / "other" / "checkpoint.pt").replace(rundir.folder / "checkpoint.new")
    assert checkpoint.load(rundir)[0]["step"] == 3


def test_saving_after_such_a_kill_leaves_two_checkpoints_again(rundir):
    for step in (1, 2, 3):
        checkpoint.save(rundir, content(step))
    rundir.checkpoint.replace(rundir.folder / "checkpoint.new")
    checkpoint.save(rundir, content(4))
    assert checkpoint.load(rundir)[0]["step"] == 4
    assert names_in(rundir) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_a_failure_while_writing_leaves_the_checkpoints_as_they_were(rundir):
    for step in (1, 2):
        checkpoint.save(rundir, content(step))
    before = {path.name: path.read_bytes() for path in rundir.folder.iterdir()}
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save(rundir, {"step": 3, "bad": lambda: None})
    assert {path.name: path.read_bytes() for path in rundir.folder.iterdir()} == before


def test_a_newer_format_is_refused_by_its_number(rundir, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 9)
    checkpoint.save(rundir, content(1))
    monkeypatch.undo()
    with pytest.raises(UserError, match=rf"has format 9, this hpcvision reads format {checkpoint.FORMAT}"):
        checkpoint.load(rundir)


class Planted:
    """What a hostile pickle looks like."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_checkpoint_is_never_run(rundir, tmp_path):
    target = tmp_path / "planted"
    torch.save({"format": checkpoint.FORMAT, "step": 1, "model": Planted(str(target))}, rundir.checkpoint)
    with pytest.raises(UserError, match="no readable checkpoint"):
        checkpoint.load(rundir)
    assert not target.exists()


def test_a_file_that_torch_can_read_but_that_is_no_checkpoint_is_called_damaged(rundir):
    for strange in ([1, 2], {"model": {}}, torch.zeros(3)):
        torch.save(strange, rundir.checkpoint)
        with pytest.raises(UserError, match="no readable checkpoint"):
            checkpoint.load(rundir)
