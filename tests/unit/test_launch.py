"""What a person is told when a run failed, and which settings reach submitit and the processes."""

import getpass

import pytest

from hpcvision import provenance
from hpcvision.errors import TrainingStopped, UserError
from hpcvision.launch.local import raise_failure
from hpcvision.launch.submit import visible_gpus
from hpcvision.rundir import RunDir

CRASH = "rank 1: Traceback (most recent call last):\n  File ...\nZeroDivisionError: division by zero\n"


def test_a_crash_is_one_line_with_the_place_of_its_traceback_and_ends_with_code_3(tmp_path):
    (tmp_path / "FAILED.txt").write_text(CRASH)
    with pytest.raises(TrainingStopped) as caught:
        raise_failure(RunDir(tmp_path), 1)
    assert str(caught.value) == (
        f"rank 1: ZeroDivisionError: division by zero; the traceback is in {tmp_path / 'FAILED.txt'}"
    )
    assert caught.value.exit_code == 3


def test_a_users_mistake_is_told_as_it_is_and_ends_with_code_2(tmp_path):
    (tmp_path / "FAILED.txt").write_text("rank 0: cannot read train\n")
    with pytest.raises(UserError, match=r"^rank 0: cannot read train$") as caught:
        raise_failure(RunDir(tmp_path), 2)
    assert caught.value.exit_code == 2


def test_a_run_that_did_not_fail_raises_nothing(tmp_path):
    raise_failure(RunDir(tmp_path), 0)


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
