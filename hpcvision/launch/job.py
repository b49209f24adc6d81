"""One process of a run, whoever started it: join the others, train, and leave a readable trace when it fails."""

import atexit
import contextlib
import fcntl
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcvision.config import RunConfig
from hpcvision.errors import TrainingStopped, UserError
from hpcvision.rundir import RunDir, cannot_write, open_run
from hpcvision.stopping import StopRequest, end_process

# Names the descriptor on which a rank tells its launcher why it failed, when it can write no file.
FAILURE_PIPE = "HPCVISION_FAILURE_PIPE"

# The time kept free before the end of a job. The checkpoint of a 97,584-parameter run takes 9 ms on a local disk; the
# last step, an evaluation and a slow shared disk come on top.
LEAVE_SECONDS = 60.0


@dataclass(frozen=True)
class TrainJob:
    """What submitit pickles: where the run is and how long it may take; a callable that every task runs."""

    folder: str
    time_limit_seconds: float | None = None
    read_test: bool = True
    """False for trials of a sweep: selection never reads the test split."""

    def __call__(self) -> dict[str, object]:
        """Train as the rank that the environment says; returns the outcome as plain values."""
        return run_rank(RunDir(Path(self.folder)), deadline=self.deadline(), read_test=self.read_test)

    def deadline(self) -> float | None:
        """Seconds since the epoch at which to stop by itself: Slurm's end time, else the limit counted from now."""
        end = os.environ.get("SLURM_JOB_END_TIME")
        if end:
            return float(end) - LEAVE_SECONDS
        if self.time_limit_seconds is None:
            return None
        return time.time() + self.time_limit_seconds - min(LEAVE_SECONDS, 0.1 * self.time_limit_seconds)


def run_rank(rundir: RunDir, *, deadline: float | None = None, read_test: bool = True) -> dict[str, object]:
    """Train in `rundir` as one rank; the main rank draws the training graph when the run is finished.

    A run that is finished already is left alone: going on would read the test split again.
    """
    config = rundir.read_config()
    if rundir.is_finished:
        return {"finished": True, "step": config.train.steps, "reason": "finished before", "scores": {}}
    # Before torch is imported, which takes seconds: a signal that comes meanwhile is a wish to stop, too.
    with StopRequest(deadline) as stop:
        from hpcvision import distributed
        from hpcvision.training.loop import train

        place = distributed.Place.from_environment()
        if place.rank == 0:
            rundir.failure.unlink(missing_ok=True)  # of an earlier stay
        try:
            with only_one(rundir) if place.rank == 0 else nothing():
                rank = distributed.start(place, rundir.folder)
                outcome = train(config, rundir, rank, stop, read_test=read_test)
                distributed.stop()
                if rank.is_main:
                    rundir.failure.unlink(missing_ok=True)
        except Exception as error:
            was_first = leave_trace(rundir, place.rank, error)
            if place.world_size == 1:  # with others, leaving the group would wait for a rank that may be gone
                distributed.stop()
            if was_first:
                raise
            # A traceback of this rank would hide the one that tells what happened.
            raise TrainingStopped(
                f"rank {place.rank} ends because another one failed before; see {rundir.failure}"
            ) from None
    if place.rank == 0 and outcome.finished:
        draw_pictures(rundir)
    return {"finished": outcome.finished, "step": outcome.step, "reason": outcome.reason, "scores": outcome.scores}


def draw_pictures(rundir: RunDir) -> None:
    """The training graph and, of a generator, the samples, from the archive."""
    from hpcvision.report.figures import samples_picture, training_graph

    try:
        # The graph comes last: where it is, nothing is missing.
        samples_picture(rundir.results, rundir.samples_picture)
        training_graph(rundir.results, rundir.training_graph)
    except OSError as error:
        atexit.unregister(end_process)  # it would end with 0
        raise TrainingStopped(
            f"the run is finished, but its pictures cannot be written: {error.strerror or error}; "
            f"the same command draws them later"
        ) from None


def leave_trace(rundir: RunDir, rank: int, error: Exception) -> bool:
    """FAILED.txt of the first rank that failed, and True for that rank; the others only fail because it is gone.

    Where the disk takes no file, the words go through the pipe to the launcher, if there is one.
    """
    words = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    text = f"rank {rank}: {words.rstrip()}\n"
    try:
        with rundir.failure.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError:
        with contextlib.suppress(OSError):
            rundir.failure.unlink(missing_ok=True)
        with contextlib.suppress(KeyError, OSError):
            os.write(int(os.environ[FAILURE_PIPE]), f"{text}\0".encode())
    return True


@contextmanager
def nothing() -> Iterator[None]:
    """No lock."""
    yield


@contextmanager
def only_one(rundir: RunDir) -> Iterator[None]:
    """Holds the run folder; raises UserError when another process trains in it. Where locks fail, there is none."""
    try:
        file = (rundir.folder / "lock").open("w")
    except OSError as error:
        raise cannot_write(rundir.folder, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {rundir.folder}; wait for it, or stop it with Ctrl-C or kill -TERM"
            ) from None
        except OSError:
            pass
        yield


def prepare(config: RunConfig, runs: Path, *, fresh: bool = False) -> RunDir:
    """The run's folder, ready to be trained in; fresh=True sets an old one aside first.

    Raises UserError for what would fail later on the cluster: a model over the cap, missing data, a folder that cannot
    be written.
    """
    from hpcvision import data
    from hpcvision.launch.space import check_space
    from hpcvision.models.counting import check_cap
    from hpcvision.training import checkpoint

    check_cap(config)
    if config.data.source != "synthetic":
        data.load(config.data, "train", image_size=config.model.image_size, num_classes=config.model.num_classes)
    folder = runs / config.folder_name
    if RunDir(folder).is_finished and not fresh:  # it is only going to be shown
        with contextlib.suppress(OSError):  # of a process that was killed when the main one had finished
            RunDir(folder).failure.unlink(missing_ok=True)
        return open_run(config, runs)
    check_space(config, folder, fresh=fresh)
    if fresh and folder.exists():
        with only_one(RunDir(folder)):
            pass
        try:
            folder.rename(folder.with_name(f"{folder.name}.replaced-{time.strftime('%Y%m%d-%H%M%S')}"))
        except OSError as error:
            raise cannot_write(runs, error) from None
    rundir = open_run(config, runs)
    try:
        tempfile.TemporaryFile(dir=rundir.folder).close()
    except OSError as error:
        raise cannot_write(rundir.folder, error) from None
    checkpoint.load(rundir)  # when none can be read, that is said here
    rundir.failure.unlink(missing_ok=True)
    return rundir
