"""The names of all files of one run, and how a file is written so that a kill never leaves half of one."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from hpcvision.config import RunConfig, differences
from hpcvision.config.overrides import one_line
from hpcvision.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` only when the block ends without an error, whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w+b") as file:
            # mkstemp makes files private; a run folder shared with a group must stay readable to it.
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
        fsync_folder(path.parent)
    finally:
        Path(beside).unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk: after a power cut a renamed file is otherwise the old one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


@dataclass(frozen=True)
class RunDir:
    """One run = one folder."""

    folder: Path

    @property
    def config(self) -> Path:
        """The RunConfig as JSON."""
        return self.folder / "config.json"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the newest, read when that one is damaged."""
        return self.folder / "checkpoint.previous.pt"

    @property
    def log(self) -> Path:
        """The journal, one JSON object per line."""
        return self.folder / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files of rank 0."""
        return self.folder / "tensorboard"

    @property
    def results(self) -> Path:
        """The archive; always complete when it exists."""
        return self.folder / "results.h5"

    @property
    def training_graph(self) -> Path:
        """Picture of the loss and accuracy curves."""
        return self.folder / "training.png"

    @property
    def samples_picture(self) -> Path:
        """Picture of a generator's random samples and interpolations."""
        return self.folder / "samples.png"

    @property
    def submissions(self) -> Path:
        """submitit's pickles and the logs of the processes it started."""
        return self.folder / "submitted"

    @property
    def job(self) -> Path:
        """Which Slurm job the run is in, and where that writes."""
        return self.folder / "job.json"

    @property
    def heartbeat(self) -> Path:
        """That the run is alive, and where it is; replaced every few seconds."""
        return self.folder / "heartbeat.json"

    @property
    def request(self) -> Path:
        """What the processes that meet in this folder are to draw, when they are not to train."""
        return self.folder / "request.json"

    @property
    def failure(self) -> Path:
        """Traceback of the first process that failed."""
        return self.folder / "FAILED.txt"

    @property
    def has_diverged(self) -> bool:
        """True when the last try ended as the loss, a weight or the objective was not finite: it would again."""
        try:
            return "not finite at step" in self.failure.read_text()
        except OSError:
            return False

    @property
    def is_sweep(self) -> bool:
        """True for the folder of a sweep, which has those of its runs below it."""
        return (self.folder / "sweep.json").exists()

    def read_config(self) -> RunConfig:
        """The configuration stored in the folder; raises UserError when there is none."""
        try:
            return RunConfig.model_validate_json(self.config.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.folder} is not a run folder (it has no config.json)") from None
        except ValidationError as error:
            raise UserError(f"{self.config} is not a configuration of this hpcvision: {one_line(error)}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.config} is not a configuration of this hpcvision: {error}") from None
        except OSError as error:
            raise UserError(f"{self.config} cannot be read: {error.strerror}") from None

    @property
    def is_finished(self) -> bool:
        """True when the last stay reached the last step and wrote the archive."""
        return any(event.get("event") == "finished" for event in read_journal(self.log))

    @property
    def has_read_test(self) -> bool:
        """True when the run has ended with the scores of the test split; False for a finished trial of a sweep."""
        return any(event["event"] == "evaluate" and event["split"] == "test" for event in read_journal(self.log))


@dataclass(frozen=True)
class Heartbeat:
    """What a running process says every few seconds, for whoever asks how it is doing."""

    time: float
    """Seconds since the epoch."""
    step: int
    numbers: str
    """The newest loss and the like, as text."""
    host: str
    job_id: str

    def write(self, rundir: RunDir) -> None:
        """Replace the file, without waiting for the disk; where none can be written, that is not worth a word."""
        beside = rundir.folder / f".{rundir.heartbeat.name}.new"
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(asdict(self)) + "\n")
            beside.replace(rundir.heartbeat)

    @staticmethod
    def read(rundir: RunDir) -> "Heartbeat | None":
        """The newest, or None."""
        try:
            return Heartbeat(**json.loads(rundir.heartbeat.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def remove_half_written(rundir: RunDir) -> None:
    """Remove what kills left: files that were being written, and the announcements of processes that never met.

    Only for the process that holds the folder, and when it has met the others.
    """
    pictures = (rundir.training_graph, rundir.samples_picture)
    written = (
        rundir.checkpoint.with_suffix(".new"),
        rundir.log,
        rundir.results,
        rundir.config,
        rundir.heartbeat,
        *pictures,
    )
    for pattern in (*(f".{path.name}.*" for path in written), ".meeting-*.json.*", "meeting-*.json"):
        for path in rundir.folder.glob(pattern):
            path.unlink(missing_ok=True)


def runs_folder(given: Path | None = None) -> Path:
    """`given`, else $HPCVISION_RUNS, else runs/ in the current folder."""
    return given or Path(os.environ.get("HPCVISION_RUNS") or "runs")


def data_folder() -> Path:
    """The folder of all data sets: `$HPCVISION_DATA`, by default `data` in the current folder."""
    return Path(os.environ.get("HPCVISION_DATA") or "data")


def open_run(config: RunConfig, runs: Path) -> RunDir:
    """The folder of `config` below `runs`, made if missing, with its config.json; refuses another run's folder."""
    rundir = RunDir((runs / config.folder_name).absolute())
    stored = rundir.read_config() if rundir.config.exists() else None
    if stored is not None:
        check_same(config, stored, rundir.folder)
    if stored != config:  # a new run, or the same one with another cadence
        try:
            write_json(rundir.config, config.model_dump(mode="json"))
        except OSError as error:
            raise cannot_write(rundir.folder, error) from None
    return rundir


def cannot_write(folder: Path, error: OSError) -> UserError:
    """What to say when `folder` does not take files."""
    return UserError(f"cannot write into {folder}: {error.strerror}; choose another --runs or $HPCVISION_RUNS")


def check_same(config: RunConfig, stored: RunConfig, where: Path) -> None:
    """Raise UserError listing the keys in which `config` is not the one that `where` was made with."""
    differing = {
        key: pair
        for key, pair in differences(stored, config).items()
        if key != "name" and not key.startswith("cadence.")
    }
    if differing:
        listed = ", ".join(f"{key} ({there} there, {here} now)" for key, (there, here) in differing.items())
        raise UserError(f"{where} belongs to another configuration; it differs in {listed}")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a journal; what a kill cut off or a power cut filled with zeros is left out."""
    if not path.exists():
        return []
    events = []
    for line in path.read_bytes().splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if line.endswith(b"\n"):
                events.append(json.loads(line))
    return events
