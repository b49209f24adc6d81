"""TensorBoard is begun by the first thing that is written, and by the end where nothing was."""

import subprocess
import sys

from hpcvision.rundir import RunDir
from hpcvision.training.board import Board


def test_the_loop_does_not_import_tensorboard():
    code = "import sys, hpcvision.training.loop; print('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_what_comes_first_is_written_once_before_the_first_value(tmp_path):
    written = []
    board = Board(RunDir(tmp_path), first_step=0, introduce=lambda board: written.append(board.begin()))
    assert not RunDir(tmp_path).tensorboard.exists()
    board.scalars(1, {"train/loss": 1.0})
    board.scalars(2, {"train/loss": 0.5})
    board.close()
    assert len(written) == 1
    assert len([*RunDir(tmp_path).tensorboard.iterdir()]) == 1


def test_a_stay_in_which_nothing_was_written_leaves_the_beginning_all_the_same(tmp_path):
    written = []
    Board(RunDir(tmp_path), first_step=0, introduce=written.append).close()
    assert len(written) == 1


def test_a_later_stay_does_not_repeat_the_beginning(tmp_path):
    written = []
    Board(RunDir(tmp_path), first_step=5, introduce=written.append).close()
    assert written == []
