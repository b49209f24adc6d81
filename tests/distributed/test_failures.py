"""Runs that cannot go on: all their processes end soon, and one line says which of them is to blame and what to do."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import torch
from real_processes import (
    RANK,
    FinishedRun,
    complaint,
    end,
    environment,
    events,
    hpcvision,
    living,
    only_run,
    ranks_below,
    start_command,
    start_ranks,
    wait_until,
)

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import TrainJob, prepare
from hpcvision.launch.lock import only_one
from hpcvision.models import build_model
from hpcvision.rundir import RunDir
from hpcvision.training import checkpoint

# At step 2 the loss is finite, yet the weights after it overflow in the next forward pass.
EXPLODES = ["optim.learning_rate=1e6", "cadence.checkpoint_every=1", "cadence.evaluate_every=20"]


# --- a loss that is not finite ---


@pytest.fixture(scope="module")
def exploded(jobs: dict[str, Path], workplace: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A two-process run whose learning rate is far too large."""
    runs = workplace / "exploded"
    result = hpcvision("train", jobs["plain"], *EXPLODES, "--processes", 2, runs=runs)
    return only_run(runs), result


def test_a_run_that_overflows_ends_with_exit_code_3_and_one_line_naming_the_step(exploded) -> None:
    _, result = exploded
    assert result.returncode == 3
    assert "not finite at step" in complaint(result)
    assert "Traceback" not in result.stderr


def test_the_checkpoint_that_is_called_good_has_weights_that_compute_finite_numbers(exploded) -> None:
    folder, result = exploded
    content, _ = checkpoint.load(RunDir(folder))
    assert content is not None
    assert f"last good checkpoint is of step {content['step']} " in complaint(result)
    model = build_model(RunDir(folder).read_config().model, seed=0)
    model.load_state_dict(content["model"])
    assert model(torch.ones(1, 3, 28, 28)).isfinite().all()


def test_failed_txt_holds_the_line_of_a_run_that_overflows(exploded) -> None:
    folder, result = exploded
    assert (folder / "FAILED.txt").read_text().strip() == complaint(result).removeprefix("hpcvision: ")


SAYS_ITS_ERROR = """
import atexit, sys
atexit.register(print, "taken apart")  # which gloo's threads may answer with SIGABRT
from hpcvision.errors import UserError
from hpcvision.launch.job import TrainJob
try:
    TrainJob(sys.argv[1])()
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_ranks_end_together_when_one_overflows_and_one_of_them_says_why(jobs: dict[str, Path], workplace: Path) -> None:
    settings = {"optim.learning_rate": 1e12, "cadence.checkpoint_every": 5}
    rundir = prepare(apply(load_job(str(jobs["plain"])), settings), workplace / "exploded-ranks")
    results = [end(process) for process in start_ranks(rundir.folder, 2, program=SAYS_ITS_ERROR)]
    assert [result.returncode for result in results] == [3, 3]
    why, other = sorted((result.stdout for result in results), key=lambda words: "failed before" in words)
    assert "no checkpoint yet" in why
    assert "taken apart" not in why + other
    assert other.strip().endswith(f"ends because another one failed before; see {rundir.failure}")


# --- a rank that raises or is killed ---

RAISES_ON_RANK_1 = """
import atexit, os, sys
atexit.register(print, "taken apart")  # which gloo's threads may answer with SIGABRT
from hpcvision.launch.job import TrainJob
from hpcvision.training.batches import Batches

take = Batches.draw
def draw(self, step):
    if step == 7 and self.rank.index == 1:
        raise ZeroDivisionError("the cosmic ray of step 7")
    return take(self, step)

Batches.draw = draw
TrainJob(sys.argv[1])()
"""


@pytest.fixture(scope="module")
def raised(jobs: dict[str, Path], workplace: Path) -> tuple[RunDir, list[subprocess.CompletedProcess[str]], float]:
    """A run of two ranks, the second of which raises; and the seconds from then until both had ended."""
    rundir = prepare(load_job(str(jobs["plain"])), workplace / "raised")
    processes = start_ranks(rundir.folder, 2, program=RAISES_ON_RANK_1)
    wait_until(rundir.failure.exists, "the failure")
    failed = time.monotonic()
    results = [end(process) for process in processes]
    return rundir, results, time.monotonic() - failed


def test_a_rank_that_raises_ends_all_ranks_within_30_seconds(raised) -> None:
    _, results, seconds = raised
    assert all(result.returncode != 0 for result in results)
    assert seconds < 30


def test_ranks_of_a_failed_run_end_with_1_and_are_not_taken_apart_first(raised) -> None:
    _, results, _ = raised
    assert [(result.returncode, result.stdout) for result in results] == [(1, ""), (1, "")]


def test_failed_txt_holds_the_traceback_of_the_rank_that_raised_and_not_its_neighbours(raised) -> None:
    text = raised[0].failure.read_text()
    assert text.startswith("rank 1: Traceback")
    assert text.rstrip().endswith("ZeroDivisionError: the cosmic ray of step 7")


@pytest.fixture(scope="module")
def orphaned(jobs: dict[str, Path], workplace: Path) -> tuple[Path, subprocess.CompletedProcess[str], float, int]:
    """A two-process run of which one rank was killed; the seconds until the command ended, and the rank."""
    runs = workplace / "orphaned"
    process = start_command("train", jobs["plain"], "train.steps=10000", "--processes", 2, runs=runs)
    wait_until(lambda: any(events(path.parent, "train") for path in runs.glob("*/log.jsonl")), "the first step")
    victim = random.randrange(2)
    os.kill(ranks_below(process.pid)[victim], signal.SIGKILL)
    killed = time.monotonic()
    result = end(process)
    return only_run(runs), result, time.monotonic() - killed, victim


def test_a_killed_rank_ends_the_run_within_30_seconds(orphaned) -> None:
    _, result, seconds, _ = orphaned
    assert result.returncode != 0
    assert seconds < 30


def test_a_killed_rank_is_named_with_its_signal_by_the_command_and_failed_txt(orphaned) -> None:
    folder, result, _, victim = orphaned
    assert f"rank {victim}: ended by SIGKILL" in complaint(result)
    assert (folder / "FAILED.txt").read_text().startswith(f"rank {victim}: ended by SIGKILL")


# --- bad input, one line before anything is started ---


def test_a_batch_that_cannot_be_split_is_refused_before_a_folder_is_made(
    jobs: dict[str, Path], workplace: Path
) -> None:
    runs = workplace / "indivisible"
    result = hpcvision("train", jobs["plain"], "--processes", 3, runs=runs)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [complaint(result)]
    assert "train.global_batch_size=16" in complaint(result)
    assert "multiple of 3" in complaint(result)
    assert list(runs.iterdir()) == []


def test_missing_data_is_one_line_with_the_command_that_fetches_it(workplace: Path) -> None:
    result = hpcvision("train", "cifar100_baby_mobilenet", "--processes", 2, runs=workplace / "no data")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [complaint(result)]
    assert "hpcvision data fetch cifar100" in complaint(result)


def test_a_run_folder_of_another_config_is_refused_with_the_keys_that_differ(
    finished: FinishedRun, jobs: dict[str, Path], workplace: Path
) -> None:
    folder = workplace / "edited" / finished.folder.name
    shutil.copytree(finished.folder, folder)
    edited = json.loads((folder / "config.json").read_text())
    edited["optim"]["learning_rate"] = 0.5
    (folder / "config.json").write_text(json.dumps(edited))
    result = hpcvision("train", jobs["tiny"], "--processes", 2, runs=folder.parent)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [complaint(result)]
    assert "optim.learning_rate (0.5 there, 0.002 now)" in complaint(result)


@pytest.fixture
def long_run(jobs: dict[str, Path], workplace: Path) -> Iterator[tuple[list[object], Path]]:
    """The command and the folder of a run that holds its folder for as long as the fixture lives, and no core."""
    runs = workplace / "busy"
    command = ["train", jobs["plain"], "train.steps=9999", "cadence.log_every=1000", "--processes", 2]
    process = start_command(*command, runs=runs)
    wait_until(lambda: any(events(path.parent, "start") for path in runs.glob("*/log.jsonl")), "the run to start")
    os.killpg(process.pid, signal.SIGSTOP)
    yield command, only_run(runs)
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGCONT)
    assert end(process).returncode == 0


def test_a_second_process_in_the_same_folder_is_refused_at_once(long_run) -> None:
    command, folder = long_run
    for more in ([], ["--fresh"]):
        result = hpcvision(*command, *more, runs=folder.parent)
        assert result.returncode == 2
        assert "another process is training in" in complaint(result)
    assert not events(folder, "stop", "finished")  # it has not waited for the other
    assert not (folder / "FAILED.txt").exists()
    assert len(events(folder, "start")) == 1


# --- ranks that meet, or do not ---

MEETS = """
import sys
from pathlib import Path
import torch
from hpcvision import distributed
from hpcvision.errors import UserError
place = distributed.Place.from_environment()
given = {"meeting_seconds": float(word) for word in sys.argv[2:]}
try:
    rank = distributed.start(place, Path(sys.argv[1]), **given)
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
print(rank.sum(torch.ones(1)).item())
distributed.stop()
"""


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    results = [end(process) for process in start_ranks(tmp_path, 3, ranks=[0, 1], program=MEETS, arguments=[8])]
    assert [result.returncode for result in results] == [3, 3], results[1].stderr
    assert "rank 2 of 3 did not come within 8 s" in results[0].stdout


@pytest.mark.long
def test_a_rank_that_never_comes_is_named_after_two_minutes_when_nothing_else_is_said(tmp_path: Path) -> None:
    begun = time.monotonic()
    results = [end(process) for process in start_ranks(tmp_path, 3, ranks=[0, 1], program=MEETS)]
    assert 115 < time.monotonic() - begun < 140
    assert [result.returncode for result in results] == [3, 3], results[1].stderr
    assert "rank 2 of 3 did not come within 120 s" in results[0].stdout


def test_a_rank_0_that_never_comes_is_named(tmp_path: Path) -> None:
    (process,) = start_ranks(tmp_path, 2, ranks=[1], program=MEETS, arguments=[2])
    result = end(process)
    assert result.returncode == 3
    assert "rank 0 of 2 did not announce itself within 2 s" in result.stdout


@pytest.mark.parametrize("kind", ["dead", "of another run"])
def test_a_stale_announcement_is_not_used(tmp_path: Path, kind: str) -> None:
    # Rank 1 reads the old file first; rank 0 comes a second later.
    if kind == "dead":
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
    else:
        other = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        port = other.port
    stale = tmp_path / "meeting-again-0.json"
    stale.write_text(json.dumps({"host": "127.0.0.1", "port": port, "token": "old"}))
    late = start_ranks(tmp_path, 2, ranks=[1], program=MEETS, arguments=[60], job_id="again")
    time.sleep(3)
    results = [
        end(process)
        for process in late + start_ranks(tmp_path, 2, ranks=[0], program=MEETS, arguments=[60], job_id="again")
    ]
    assert [result.stdout.strip() for result in results] == ["2.0", "2.0"]
    assert not stale.exists()


# Drawing 13,000 images takes each process 130 MB at its peak.
FEW_IMAGES = f"""
from hpcvision.data import synthetic
synthetic.SIZES = dict.fromkeys(synthetic.SIZES, 100)
{RANK}
"""
GIGABYTES_FOR_EACH = 0.9  # measured: 16.3 for 20 runs, which took 103 s on two cores


@pytest.mark.parametrize("runs", [2, pytest.param(20, marks=pytest.mark.long)])
def test_many_runs_at_once_all_meet_and_finish(jobs: dict[str, Path], workplace: Path, runs: int) -> None:
    (kilobytes,) = re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    if int(kilobytes) < runs * GIGABYTES_FOR_EACH * 2**20:
        pytest.skip(f"{runs} runs at once need {runs * GIGABYTES_FOR_EACH:.0f} GB of free memory")
    config = apply(load_job(str(jobs["plain"])), {"train.steps": 2, "ema.beta": 0})
    rundirs = [prepare(apply(config, {"seed": seed}), workplace / f"many-{runs}") for seed in range(runs)]
    processes = [process for rundir in rundirs for process in start_ranks(rundir.folder, 2, program=FEW_IMAGES)]
    assert [end(process).returncode for process in processes] == [0] * (2 * runs)
    assert all(rundir.is_finished for rundir in rundirs)


def test_no_failed_run_leaves_a_process_behind(exploded, raised, orphaned) -> None:
    folders = {str(exploded[0]), str(raised[0].folder), str(orphaned[0])}
    words = [word for pid in living() for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    assert not folders & set(words)


RARELY = ["cadence.checkpoint_every=100", "cadence.evaluate_every=100"]


def test_a_job_with_one_try_waits_for_the_process_in_the_folder_and_does_not_finish_the_run_again(jobs, tmp_path):
    process = start_command("train", jobs["tiny"], *RARELY, "train.steps=300", "--processes", 2, runs=tmp_path)
    wait_until(lambda: any(events(path.parent, "start") for path in tmp_path.glob("*/log.jsonl")), "the start")
    folder = only_run(tmp_path)
    program = f"import os; os.environ['HPCVISION_ONE_TRY'] = '1'; {RANK}"
    others = start_ranks(folder, 2, program=program)
    assert end(process).returncode == 0
    assert RunDir(folder).is_finished
    outcomes = [end(other) for other in others]
    assert [json.loads(outcome.stdout.splitlines()[-1])["reason"] for outcome in outcomes] == ["finished before"] * 2
    assert "another process is training" in outcomes[0].stderr
    assert "this job waits for it" in outcomes[0].stderr
    with h5py.File(folder / "results.h5") as file:
        assert file.attrs["test_reads"] == 1
    assert len(events(folder, "start")) == 1
    assert not list(folder.glob("meeting-*"))


def test_a_run_that_another_process_has_does_not_keep_those_that_share_its_job_from_being_trained(jobs, tmp_path):
    taken, free = (prepare(load_job(str(jobs["plain"])), tmp_path / name) for name in ("taken", "free"))
    pack = TrainJob(str(taken.folder), further=(str(free.folder),))
    program = f"from hpcvision.launch.job import TrainJob\n{pack!r}()"
    again = tmp_path / "again"
    with only_one(taken):
        words = [sys.executable, "-c", program]
        environment_of_task = environment(tmp_path, HPCVISION_AGAIN=str(again), SLURM_PROCID="0")
        process = subprocess.run(words, env=environment_of_task, capture_output=True, text=True)
    assert process.returncode == 1
    assert "FolderInUse" in process.stderr
    assert free.is_finished
    assert not taken.is_finished
    assert again.exists(), "the job is queued again for the run that is left"
