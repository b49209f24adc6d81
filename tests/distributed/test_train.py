"""`hpcvision train` with two processes, and everything that a finished run leaves behind."""

import io
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import h5py
import pytest
from real_processes import (
    SLURM_TASK,
    STEPS,
    FinishedRun,
    assert_same_run,
    end,
    events,
    hpcvision,
    ranks_below,
    start_command,
    wait_until,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import PLUGIN_NAME as HPARAMS

import hpcvision as package_here
from hpcvision.launch.job import TrainJob
from hpcvision.results.digests import broken_seals
from hpcvision.rundir import RunDir
from hpcvision.training import checkpoint, progress


@pytest.fixture(scope="module")
def board(finished: FinishedRun) -> EventAccumulator:
    """What TensorBoard reads of the finished run."""
    (file,) = (finished.folder / "tensorboard").iterdir()
    accumulator = EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def test_two_processes_finish_every_step(finished: FinishedRun) -> None:
    (start,) = events(finished.folder, "start")
    (stop,) = events(finished.folder, "stop")
    assert (start["world_size"], stop["step"], stop["reason"]) == (2, STEPS, "finished")


def test_run_folder_is_named_by_its_fingerprint_and_holds_its_config(finished: FinishedRun) -> None:
    config = RunDir(finished.folder).read_config()
    assert finished.folder.name == f"tiny-{config.fingerprint}"


def test_the_process_that_starts_the_ranks_of_a_known_model_does_not_wait_for_torch(finished, jobs, tmp_path):
    """The run before has made the model known; torch would double the time to the first step."""
    del finished
    process = start_command("train", jobs["tiny"], "seed=7", "--processes", 2, runs=tmp_path)
    wait_until(lambda: process.poll() is not None or len(ranks_below(process.pid)) == 2, "the ranks")
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    wait_until(lambda: list(tmp_path.glob("*/log.jsonl")), "the first step")
    assert all("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in ranks_below(process.pid))
    process.send_signal(signal.SIGTERM)
    assert end(process).returncode == 0


def test_last_checkpoint_is_of_the_last_step(finished: FinishedRun) -> None:
    content, complaint = checkpoint.load(RunDir(finished.folder))
    assert content is not None
    assert (content["step"], complaint) == (STEPS, "")


def test_archive_holds_training_and_validation_curves(finished: FinishedRun) -> None:
    with h5py.File(finished.folder / "results.h5") as file:
        assert file["train/step"][()].tolist() == list(range(5, STEPS + 1, 5))
        splits, steps = file["evaluate/split"].asstr()[()], file["evaluate/step"][()]
        # Raw weights and their average at every evaluation.
        assert steps[splits == "validation"].tolist() == [20, 20, 40, 40, 60, 60]


def test_archive_holds_raw_and_averaged_weights_that_differ(finished: FinishedRun) -> None:
    with h5py.File(finished.folder / "results.h5") as file:
        raw, average = file["weights/raw"], file["weights/ema"]
        assert set(raw) == set(average)
        assert (raw["classifier.weight"][()] != average["classifier.weight"][()]).any()


def test_archive_scores_the_test_split_and_every_class_of_it(finished: FinishedRun) -> None:
    with h5py.File(finished.folder / "results.h5") as file:
        accuracy = file["scores/test"].attrs["accuracy"]
        confusion = file["classes/confusion"][()]
        assert accuracy == confusion.trace() / confusion.sum()
        assert confusion.shape == (100, 100)


def test_archive_of_a_finished_run_is_sealed(finished: FinishedRun) -> None:
    with h5py.File(finished.folder / "results.h5") as file:
        assert broken_seals(file) == []
        assert file.attrs["finished"]


def test_a_final_run_reads_the_test_split_once(finished: FinishedRun) -> None:
    with h5py.File(finished.folder / "results.h5") as file:
        assert file.attrs["test_reads"] == 1


def test_finished_run_prints_where_its_archive_and_graph_are(finished: FinishedRun) -> None:
    for name in ("results.h5", "training.png"):
        assert str(finished.folder / name) in finished.out
        assert (finished.folder / name).stat().st_size > 1000


def test_tensorboard_has_training_and_validation_scalars(board: EventAccumulator) -> None:
    assert {"train/loss", "train/accuracy", "validation/loss", "validation_ema/accuracy"} <= set(board.scalars.Keys())
    assert [point.step for point in board.Scalars("train/loss")] == list(range(5, STEPS + 1, 5))


def test_tensorboard_has_a_grid_of_augmented_inputs(board: EventAccumulator) -> None:
    # The main rank's 8 images of 32 x 32, eight in a row.
    (grid,) = board.Images("inputs")
    assert (grid.width, grid.height) == (8 * 32, 32)


def test_tensorboard_has_the_settings_as_hparams_in_the_same_file(board: EventAccumulator) -> None:
    assert "_hparams_/session_start_info" in board.PluginTagToContent(HPARAMS)


def test_a_log_has_whole_lines_and_no_carriage_returns(finished: FinishedRun) -> None:
    assert f"step {STEPS}  validation (raw)" in finished.err
    assert "\r" not in finished.err
    assert "\x1b" not in finished.err


def test_a_log_gets_a_plain_progress_line_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    with progress.StepProgress(first_step=0, steps=10_000, name="tiny", is_main=True) as line:
        line.advance(5000, "loss 1.5")
    assert log.getvalue() == "step 5,000/10,000  loss 1.5  00:00 left\n"


def test_a_finished_run_is_not_trained_again(finished: FinishedRun, jobs: dict[str, Path]) -> None:
    before = (finished.folder / "log.jsonl").read_bytes()
    again = hpcvision("train", jobs["tiny"], "--processes", 2, runs=finished.runs)
    assert (finished.folder / "log.jsonl").read_bytes() == before
    assert str(finished.folder / "results.h5") in again.stdout


def test_a_run_killed_after_its_last_step_gets_its_missing_graph(finished: FinishedRun, jobs: dict[str, Path]) -> None:
    (finished.folder / "training.png").unlink()
    again = hpcvision("train", jobs["tiny"], "--processes", 2, runs=finished.runs)
    assert (finished.folder / "training.png").stat().st_size > 1000
    assert str(finished.folder / "training.png") in again.stdout


def test_the_failure_of_a_rank_that_was_killed_after_the_run_had_finished_is_forgotten(
    finished: FinishedRun, jobs: dict[str, Path]
) -> None:
    (finished.folder / "FAILED.txt").write_text("rank 1: ended by SIGKILL from outside\n")
    assert hpcvision("train", jobs["tiny"], "--processes", 2, runs=finished.runs).returncode == 0
    assert not (finished.folder / "FAILED.txt").exists()


def test_a_rank_that_comes_to_a_finished_run_does_not_read_the_test_split_again(finished: FinishedRun) -> None:
    before = (finished.folder / "log.jsonl").read_bytes()
    assert TrainJob(str(finished.folder))()["reason"] == "finished before"
    assert (finished.folder / "log.jsonl").read_bytes() == before


@pytest.fixture(scope="module")
def run_afresh(finished: FinishedRun, jobs: dict[str, Path], workplace: Path) -> Path:
    """Runs folder in which the tiny job was trained again with --fresh beside what an earlier run left."""
    runs = workplace / "fresh"
    old = runs / finished.folder.name
    old.mkdir(parents=True)
    (old / "config.json").write_bytes((finished.folder / "config.json").read_bytes())
    (old / "log.jsonl").write_bytes((finished.folder / "log.jsonl").read_bytes())
    (old / "old.txt").write_text("old")
    result = hpcvision("train", jobs["tiny"], "--processes", 2, "--fresh", runs=runs)
    assert result.returncode == 0, result.stderr
    return runs


def test_fresh_sets_the_old_folder_aside(run_afresh: Path, finished: FinishedRun) -> None:
    (aside,) = run_afresh.glob("*.replaced-*")
    assert (aside / "old.txt").read_text() == "old"
    assert not (run_afresh / finished.folder.name / "old.txt").exists()


def test_a_run_says_when_its_steps_were_trained_by_other_code_than_now(jobs: dict[str, Path], tmp_path: Path) -> None:
    """Also what is not committed, and where there is no checkout."""
    package = tmp_path / "copy" / "hpcvision"
    shutil.copytree(Path(package_here.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    here: dict[str, Any] = {"runs": tmp_path / "runs", "PYTHONPATH": str(package.parent)}
    command = ["train", jobs["tiny"], "train.steps=2", "--processes", 1]
    other = "trained by other code than now"
    assert other not in hpcvision(*command, **here).stdout
    assert other not in hpcvision(*command, **here).stdout
    with (package / "models" / "layers.py").open("a") as file:
        file.write("# new\n")
    assert f"  {other}; --fresh trains again" in hpcvision(*command, **here).stdout
    (journal,) = here["runs"].glob("*/log.jsonl")
    # As if it had been killed before its last line.
    journal.write_text("".join(line for line in journal.open() if '"event": "finished"' not in line))
    assert f"the steps so far were {other}" in hpcvision(*command, **here).stderr
    assert other not in hpcvision(*command, "--fresh", **here).stdout


def test_the_same_command_gives_the_same_run_bit_for_bit(run_afresh: Path, finished: FinishedRun) -> None:
    assert_same_run(run_afresh / finished.folder.name, finished.folder)


def test_diffusion_archive_holds_samples_with_their_seeds_and_labels(generated: FinishedRun) -> None:
    with h5py.File(generated.folder / "results.h5") as file:
        samples = file["samples/random"]
        assert samples["images"].shape == (6, 16, 16, 3)
        assert samples["seeds"][()].tolist() == list(range(6))
        assert samples["images"][()].std() > 0


def test_diffusion_archive_holds_interpolations(generated: FinishedRun) -> None:
    with h5py.File(generated.folder / "results.h5") as file:
        assert file["interpolations/slerp/images"].shape == (2, 3, 16, 16, 3)


def test_diffusion_run_draws_its_samples_and_prints_where(generated: FinishedRun) -> None:
    assert str(generated.folder / "samples.png") in generated.out
    assert (generated.folder / "samples.png").stat().st_size > 1000


def test_every_line_of_the_journal_is_json_with_an_event_and_no_file_is_half_written(finished: FinishedRun) -> None:
    lines = (finished.folder / "log.jsonl").read_text().splitlines()
    assert all("event" in json.loads(line) for line in lines)
    assert [path.name for path in finished.folder.iterdir() if path.name.startswith(".")] == []


def test_train_help_starts_no_run(tmp_path: Path) -> None:
    process = start_command("train", "--help", runs=tmp_path)
    out, _ = process.communicate()
    assert "Example" in out
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_slurm_queues_again_goes_on_with_what_it_began_afresh(
    stopped: Path, jobs: dict[str, Path], workplace: Path
) -> None:
    """A batch script runs the same words again, --fresh among them."""
    runs = shutil.copytree(stopped.parent, workplace / "queued again")
    again = SLURM_TASK | {"SLURM_RESTART_COUNT": "1"}
    result = hpcvision("train", jobs["tiny"], "--fresh", "--processes", 2, runs=runs, **again)
    assert result.returncode == 0, result.stderr
    assert "going on from step" in result.stderr
    assert [path.name for path in runs.iterdir()] == [stopped.name]
