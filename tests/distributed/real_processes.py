"""Starts hpcvision as a user does: real processes in a clean environment, and what they left in a run folder."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcvision.results.digests import broken_seals
from hpcvision.rundir import RunDir, read_journal
from hpcvision.training import checkpoint

PATIENCE = 240.0  # seconds; an idle machine needs 10, one whose cores are all taken several times that
REPEATS = int(os.environ.get("HPCVISION_REPEATS") or 1)  # kills of each kind
SEED = int(os.environ.get("HPCVISION_SEED") or time.time_ns() % 1_000_000)  # of their moments

# What the tests counted, one line each, for the end of the output.
COUNTED: list[str] = []

# Every process that a test starts carries this word in its environment, and hands it on to its children.
MARK = f"HPCVISION_TEST_MARK={uuid.uuid4().hex}"

COMMAND = [sys.executable, "-c", "from hpcvision.cli import main; main()"]

# What Slurm says to the only task of its seventh job.
SLURM_TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
}

# One rank of a run, with its outcome as JSON on standard output.
RANK = "import json, sys; from hpcvision.launch.job import TrainJob; print(json.dumps(TrainJob(sys.argv[1])()))"

# What a run leaves that must not depend on when it was stopped; times and speeds may.
EXACT_COLUMNS = (
    "step",
    "loss",
    "accuracy",
    "learning_rate",
    "split",
    "weights",
    "confusion",
    "images",
    "labels",
    "seeds",
)


STEPS = 60  # of the tiny job


@dataclass(frozen=True)
class FinishedRun:
    """A run that was left alone until its end."""

    runs: Path
    folder: Path
    code: int
    out: str
    err: str
    startup_seconds: float
    """From the start of the command to the first line of the journal."""
    training_seconds: float
    """From the first line of the journal to the end of the process."""


def environment(runs: Path, **more: str) -> dict[str, str]:
    """Nothing of the caller's Slurm, submitit, Ray or hpcvision; one thread for each process; no data sets."""
    name, _, value = MARK.partition("=")
    kept = {
        key: os.environ[key]
        for key in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME")
        if key in os.environ
    }
    ours = {"HPCVISION_RUNS": str(runs), "HPCVISION_DATA": str(runs / "no data"), "OMP_NUM_THREADS": "1", name: value}
    ours |= {"CUDA_VISIBLE_DEVICES": ""}  # several processes would want one GPU, and CPUs repeat bit for bit
    return kept | ours | more


def start_command(
    *words: object, runs: Path, handicap: Callable[[], object] = lambda: None, **more: str
) -> subprocess.Popen[str]:
    """`hpcvision WORDS` in a process group of its own, with pipes for its output; `handicap` runs in it first."""
    runs.mkdir(parents=True, exist_ok=True)
    command = [*COMMAND, *map(str, words)]

    def first() -> None:
        # A test run in the background of a script ignores Ctrl-C, and so would everything that it starts.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        handicap()

    return subprocess.Popen(
        command,
        env=environment(runs, **more),
        cwd=runs,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=first,
    )


def end(process: subprocess.Popen[str], *, patience: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Wait for a process and take its output; kills its group when it takes too long."""
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"did not end within {patience:.0f} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def hpcvision(*words: object, runs: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """`hpcvision WORDS`, waited for; `more` as for `start_command`."""
    return end(start_command(*words, runs=runs, **more))


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The only line on standard error that is hpcvision's own."""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("hpcvision: ")]
    return line


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """What a command said that was given something wrong: one line and exit code 2, nothing else."""
    assert (result.returncode, result.stdout) == (2, ""), result.stdout + result.stderr
    assert result.stderr.splitlines() == [complaint(result)]
    return complaint(result)


def files_below(folder: Path) -> dict[str, str]:
    """Every file below `folder` with the SHA-256 of its bytes; not the `lock` that whoever looks in leaves."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cut(path: Path) -> None:
    """Damage a file: leave the first half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Damage a file: change one bit in the middle."""
    change(path, 1, 0x01)


def ruin_sector(path: Path) -> None:
    """Damage a file: invert 4,096 bytes in the middle; a single one can lie where nothing is stored."""
    change(path, 4096, 0xFF)


def change(path: Path, count: int, bits: int) -> None:
    """Exclusive or of `bits` with `count` bytes in the middle of a file."""
    with path.open("r+b") as file:
        start = path.stat().st_size // 2
        file.seek(start)
        block = file.read(count)
        file.seek(start)
        file.write(bytes(byte ^ bits for byte in block))


def start_ranks(
    folder: Path,
    world_size: int,
    *,
    program: str = RANK,
    job_id: str | None = None,
    ranks: Sequence[int] | None = None,
    arguments: Sequence[object] = (),
) -> list[subprocess.Popen[str]]:
    """The ranks of one run, without a launcher that watches over them; `ranks` starts only some of them."""
    job_id = job_id or f"test-{uuid.uuid4().hex[:8]}"
    processes = []
    for rank in ranks if ranks is not None else range(world_size):
        place = {"HPCVISION_RANK": rank, "HPCVISION_WORLD_SIZE": world_size, "HPCVISION_JOB_ID": job_id}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", program, str(folder), *map(str, arguments)],
                env=environment(folder.parent, **{key: str(value) for key, value in place.items()}),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    return processes


def ranks_below(parent: int) -> list[int]:
    """Process ids of the worker processes that the launcher `parent` started, by rank."""
    found = {}
    for pid in (int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        ranks = [int(word.partition(b"=")[2]) for word in words if word.startswith(b"HPCVISION_RANK=")]
        if ranks:
            found[ranks[0]] = pid
    return [found[rank] for rank in sorted(found)]


def living(mark: str = MARK) -> list[int]:
    """Processes that carry the mark and are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = mark.encode() in (path / "environ").read_bytes().split(b"\0")
            is_alive = (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (OSError, IndexError):
            continue
        if is_ours and is_alive:
            found.append(int(path.name))
    return found


def wait_until(condition: Callable[[], Any], what: str, *, patience: float = PATIENCE) -> None:
    """Look every 10 ms until `condition` holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for: {what}"
        time.sleep(0.01)


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    """The journal of a run, or only the events with these names."""
    return [event for event in read_journal(folder / "log.jsonl") if not names or event["event"] in names]


def only_run(runs: Path) -> Path:
    """The one run folder below `runs`."""
    (folder,) = [path.parent for path in runs.glob("*/config.json")]
    return folder


def ledger(folder: Path) -> list[dict[str, Any]]:
    """/ledger of a run's archive, one dictionary per row."""
    with h5py.File(folder / "results.h5") as file:
        columns = {
            name: item.asstr()[()].tolist() if h5py.check_string_dtype(item.dtype) else item[()].tolist()
            for name, item in file["ledger"].items()
        }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def exact_content(folder: Path) -> Mapping[str, bytes]:
    """Everything in results.h5 that must be the same, bit for bit, whatever happened to the run on its way."""
    content: dict[str, bytes] = {}
    with h5py.File(folder / "results.h5") as file:

        def take(path: str, item: h5py.Group | h5py.Dataset) -> None:
            is_exact = path.startswith("weights/") or path.rsplit("/", 1)[-1] in EXACT_COLUMNS
            if isinstance(item, h5py.Dataset) and is_exact and not path.startswith(("digests/", "ledger/")):
                value = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]
                content[path] = repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
            if path.startswith("scores/"):
                for name, value in item.attrs.items():
                    content[f"{path}@{name}"] = np.asarray(value).tobytes()

        file.visititems(take)
    return content


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, averages, curves, scores and pictures of two runs are equal bit for bit."""
    a, b = exact_content(one), exact_content(other)
    differing = [name for name in sorted(a | b) if a.get(name) != b.get(name)]
    assert not differing, f"{len(differing)} of {len(a | b)} differ: {differing[:6]}"
    assert len(a) > 20


def assert_readable(folder: Path) -> None:
    """The checkpoint and the archive, where they exist, are whole."""
    _, complaint = checkpoint.load(RunDir(folder))
    assert complaint == ""
    if (folder / "results.h5").exists():
        with h5py.File(folder / "results.h5") as file:
            assert broken_seals(file) == []
