"""Tiny jobs on drawn images, and runs that several tests look at, each made once."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_processes import COUNTED, STEPS, FinishedRun, end, events, living, only_run, start_command, wait_until

JOBS = {
    # BatchNorm, dropout, augmentation, an average: everything that a resume could get wrong. Frequent checkpoints, so
    # that random kills hit them.
    "tiny": f"""
from hpcvision.config import *

def config():
    return RunConfig(
        name="tiny",
        model=BabyMobileNetConfig(width=0.25, dropout=0.1),
        data=DataConfig(source="synthetic", augmentation=AugmentConfig(crop_padding=2, flip=True, rotation_degrees=5)),
        train=TrainConfig(steps={STEPS}, global_batch_size=16),
        optim=OptimConfig(optimizer="adamw", learning_rate=2e-3, schedule="cosine", warmup_steps=5),
        cadence=CadenceConfig(log_every=5, evaluate_every=20, checkpoint_every=6),
    )
""",
    # No BatchNorm: the same on any number of processes.
    "plain": """
from hpcvision.config import *

def config():
    return RunConfig(
        name="plain",
        model=AddNISTCNNConfig(width=0.25),
        data=DataConfig(source="synthetic", augmentation=AugmentConfig(per_channel=True, rotation_degrees=5)),
        train=TrainConfig(steps=20, global_batch_size=16, precision="fp32"),
        optim=OptimConfig(optimizer="sgd", learning_rate=0.05),
        cadence=CadenceConfig(log_every=1, evaluate_every=10, checkpoint_every=5),
    )
""",
}


@pytest.fixture(scope="session", autouse=True)
def _no_process_of_ours_survives() -> Iterator[None]:
    yield
    for pid in living():
        os.kill(pid, signal.SIGKILL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTED:
        terminalreporter.section("what was done to the runs")
        for line in COUNTED:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name would break careless quoting, and that rich would take for a colour."""
    folder = tmp_path_factory.mktemp("work") / "it's a $HOME & [red] more"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def jobs(workplace: Path) -> dict[str, Path]:
    """The job files by name."""
    for name, text in JOBS.items():
        (workplace / f"{name}.py").write_text(text)
    return {name: workplace / f"{name}.py" for name in JOBS}


def run_to_the_end(*words: object, runs: Path) -> FinishedRun:
    """`hpcvision train WORDS` in an empty runs folder, left alone."""
    commanded = time.monotonic()
    process = start_command("train", *words, runs=runs)
    wait_until(
        lambda: process.poll() is not None or any(events(path.parent, "start") for path in runs.glob("*/log.jsonl")),
        "the run to start",
    )
    started = time.monotonic()
    result = end(process)
    assert result.returncode == 0, result.stderr
    return FinishedRun(
        runs,
        only_run(runs),
        result.returncode,
        result.stdout,
        result.stderr,
        startup_seconds=started - commanded,
        training_seconds=time.monotonic() - started,
    )


@pytest.fixture(scope="session")
def finished(workplace: Path, jobs: dict[str, Path]) -> FinishedRun:
    """The tiny classifier, trained by two processes that nobody disturbed."""
    return run_to_the_end(jobs["tiny"], "--processes", 2, runs=workplace / "finished")


@pytest.fixture(scope="session")
def stopped(workplace: Path, jobs: dict[str, Path]) -> Path:
    """The folder of the tiny classifier, ended by SIGTERM when it had two checkpoints and an archive; copy it."""
    runs = workplace / "stopped"
    process = start_command("train", jobs["tiny"], "--processes", 2, runs=runs)
    wait_until(
        lambda: process.poll() is not None or list(runs.glob("*/checkpoint.previous.pt")), "the second checkpoint"
    )
    process.send_signal(signal.SIGTERM)
    result = end(process)
    assert "stopped at step" in result.stderr, result.stderr
    return only_run(runs)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small disk")
    folder = tmp_path / "small disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk, which root does not have here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def generated(workplace: Path) -> FinishedRun:
    """A small diffusion job on drawn images, 6 steps and a handful of samples."""
    settings = {
        "data.source": "synthetic",
        "train.steps": 6,
        "train.global_batch_size": 8,
        "ema.headline": "raw",
        "ema.beta": 0,
        "optim.warmup_steps": 0,
        "sample.steps": 3,
        "sample.images": 6,
        "sample.interpolation_pairs": 2,
        "sample.interpolation_points": 3,
        "cadence.log_every": 2,
        "model.image_size": 16,
        "model.num_classes": 10,
        "model.width": 0.1,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return run_to_the_end("cifar100_ddpm_small", *overrides, "--processes", 2, runs=workplace / "generated")
