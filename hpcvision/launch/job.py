"""One process of a run, whoever started it: join the others, train, and leave a readable trace when it fails."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from hpcvision import checksum
from hpcvision.config import RunConfig
from hpcvision.errors import FolderInUse, TrainingStopped, UserError
from hpcvision.importing import collector_off
from hpcvision.launch.lock import in_turn, only_one
from hpcvision.launch.record import record_own_job
from hpcvision.place import Place
from hpcvision.rundir import RunDir, cannot_write, data_folder, open_run, read_journal
from hpcvision.stopping import StopRequest, end_at_exit, ends_at_exit, leave_seconds

# Names the descriptor on which a rank tells its launcher why it failed, when it can write no file.
FAILURE_PIPE = "HPCVISION_FAILURE_PIPE"

# Names the file that rank 0 makes when a run has stopped before its end, so that the batch script queues it again.
AGAIN_FILE = "HPCVISION_AGAIN"

# So often a job is queued again when another process has its run's folder.
MOST_RETURNS = 20
# So many stays in a row may end without a single step before a run is given up.
FRUITLESS_STAYS = 3


@dataclass(frozen=True)
class TrainJob:
    """What submitit pickles: where the run is and how long it may take; a callable that every task runs."""

    folder: str
    time_limit_seconds: float | None = None
    read_test: bool = True
    """False for trials of a sweep: selection never reads the test split."""
    further: tuple[str, ...] = ()
    """More runs for the same process, one after the other: Python and torch take seconds to start."""
    pause_at: int | None = None
    """Step at which a trial of a sweep is compared with the others."""
    stop_file: str | None = None
    """A file that asks to stop by being there."""

    def __call__(self) -> dict[str, object]:
        """Train as the rank that the environment says; returns the outcome of the last run as plain values.

        One of several runs that fails leaves its FAILED.txt and does not keep the others from being trained.
        """
        outcome: dict[str, object] = {}
        error = None
        # Before torch is imported, which takes seconds: a signal that comes meanwhile is a wish to stop, too.
        file = Path(self.stop_file) if self.stop_file else None
        # A signal that ends a failed rank on its way out would make its batch script take the job for a preempted one,
        # and submitit's own handlers would requeue a job that is about to end. A sweep's process goes on, though.
        is_last = file is None and not {"SUBMITIT_EXECUTOR", "SLURM_STEP_ID"}.isdisjoint(os.environ)
        with StopRequest(self.deadline(), pause_at=self.pause_at, file=file, deaf_afterwards=is_last) as stop:
            for folder in (self.folder, *self.further):
                if stop.code and outcome:
                    outcome = {"finished": False, "step": 0, "reason": StopRequest.reason(stop.code), "scores": {}}
                    break
                try:
                    outcome = run_rank(RunDir(Path(folder)), stop, read_test=self.read_test)
                except Exception as failure:
                    if isinstance(failure, FolderInUse):
                        come_back()
                    if not self.further:
                        raise
                    print(f"{folder}: {failure}", file=sys.stderr, flush=True)
                    error = error or failure
                    continue
                if not outcome["finished"]:
                    break
        if not outcome.get("finished", True):
            leave_word()
        if error is not None:
            raise error
        return outcome

    def deadline(self) -> float | None:
        """Seconds since the epoch at which to stop by itself: Slurm's end time, else the limit counted from now."""
        end, now = os.environ.get("SLURM_JOB_END_TIME"), time.time()
        if end:
            return float(end) - leave_seconds(float(end) - now)
        if self.time_limit_seconds is None:
            return None
        return now + self.time_limit_seconds - leave_seconds(self.time_limit_seconds)


def leave_word() -> None:
    """Tell the batch script that the job is to be queued again: by a file, as all ranks must end with 0."""
    path = os.environ.get(AGAIN_FILE)
    if path and os.environ.get("SLURM_PROCID") == "0":
        with contextlib.suppress(OSError):
            Path(path).touch()


def come_back() -> None:
    """Queue again while another process has the folder, but not for ever: a lost node may still train."""
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) < MOST_RETURNS:
        leave_word()


def run_rank(rundir: RunDir, stop: StopRequest, *, read_test: bool = True) -> dict[str, object]:
    """Train in `rundir` as one rank; the main rank draws the training graph when the run is finished.

    A run that is finished already is left alone: going on would read the test split again. A finished trial of a sweep
    has not read it, and does so now when it may.
    """
    config = rundir.read_config()
    check_affinity()

    def is_over() -> bool:
        return rundir.is_finished and (rundir.has_read_test or not read_test)

    nothing_to_do = {"finished": True, "step": config.train.steps, "reason": "finished before", "scores": {}}
    if is_over():
        return nothing_to_do
    # 0.11 s for either data set, beside the 1.3 s of importing torch.
    for path in (data_folder() / "prepared").glob(f"{config.data.source}*.images.npy"):
        checksum.begin(path)
    with collector_off():
        from hpcvision import distributed
        from hpcvision.training.loop import train

    place = Place.from_environment()
    if place.rank == 0:
        rundir.failure.unlink(missing_ok=True)  # of an earlier stay
    try:
        if place.restart:
            check_progress(rundir)
        with in_turn(rundir, place, stop) if place.rank == 0 else contextlib.nullcontext():
            if place.rank == 0:
                rundir.failure.unlink(missing_ok=True)  # of the process that was waited for
                record_own_job(rundir, place)
            rank = distributed.start(place, rundir.folder)
            if rank.any(is_over()):  # finished by the process that was waited for
                distributed.stop()
                return nothing_to_do
            outcome = train(config, rundir, rank, stop, read_test=read_test)
            distributed.stop()
            if rank.is_main:
                rundir.failure.unlink(missing_ok=True)
    except FolderInUse:
        raise  # FAILED.txt would be taken for the other process's
    except Exception as error:
        # A run that is finished has not failed: a process that was killed on its way out is missed by another one.
        was_first = is_over() or leave_trace(rundir, place.rank, error)
        if place.world_size == 1:
            distributed.stop()
        else:  # leaving the group would wait for a rank that may be gone
            end_at_exit(error.exit_code if isinstance(error, UserError) else 1)
        if was_first:
            raise
        # A traceback of this rank would hide the one that tells what happened.
        raise TrainingStopped(
            f"rank {place.rank} ends because another one failed before; see {rundir.failure}"
        ) from None
    if place.rank == 0 and outcome.finished and read_test:  # of a sweep's hundreds, nobody would look at them
        draw_pictures(rundir)
    return {"finished": outcome.finished, "step": outcome.step, "reason": outcome.reason, "scores": outcome.scores}


def check_affinity() -> None:
    """Say in the log when this process may use fewer cores than its job has asked for."""
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    allowed = len(os.sched_getaffinity(0))
    if allowed < asked:
        print(
            f"hpcvision: this process may use {allowed} of the {asked} cores that its job asked for; give srun "
            f"--cpus-per-task={asked}",
            file=sys.stderr,
            flush=True,
        )


def check_progress(rundir: RunDir) -> None:
    """Raise TrainingStopped when the last stays of a requeued run made no step: it would be requeued for ever."""
    stays = [event["from_step"] for event in read_journal(rundir.log) if event["event"] == "start"]
    last = stays[-FRUITLESS_STAYS - 1 :]
    if len(last) > FRUITLESS_STAYS and len(set(last)) == 1:
        raise TrainingStopped(
            f"{FRUITLESS_STAYS} stays in a row ended at step {last[-1]:,}, where they began; look into the logs, or "
            "submit with a longer --minutes"
        )


def draw_pictures(rundir: RunDir) -> None:
    """The training graph and, of a generator, the samples, from the archive."""
    from hpcvision.report.figures import samples_picture, training_graph

    try:
        # The graph comes last: where it is, nothing is missing.
        samples_picture(rundir.results, rundir.samples_picture)
        training_graph(rundir.results, rundir.training_graph)
    except OSError as error:
        if ends_at_exit():  # with 0, as its group was left in order
            end_at_exit(TrainingStopped.exit_code)
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


def prepare(
    config: RunConfig,
    runs: Path,
    *,
    fresh: bool = False,
    on_cluster: bool = False,
    aside: dict[Path, Path] | None = None,
) -> RunDir:
    """The run's folder, ready to be trained in; fresh=True sets an old one aside first.

    on_cluster: checkpoints are left for the nodes to read, as reading them imports torch;  aside: is told where
    an old folder went.

    Raises UserError for what would fail later on the cluster: a model over the cap, missing data, a folder that cannot
    be written.
    """
    from hpcvision.launch.checked import facts_of
    from hpcvision.launch.space import check_space

    facts = facts_of(config)
    folder = runs / config.folder_name
    if RunDir(folder).is_finished and not fresh:  # it is only going to be shown
        with contextlib.suppress(OSError):  # of a process that was killed when the main one had finished
            RunDir(folder).failure.unlink(missing_ok=True)
        return open_run(config, runs)
    check_space(config, facts.stored_numbers, folder, fresh=fresh)
    if fresh and folder.exists():
        with only_one(RunDir(folder)):
            pass
        old = folder.with_name(f"{folder.name}.replaced-{time.strftime('%Y%m%d-%H%M%S')}")
        try:
            folder.rename(old)
        except OSError as error:
            raise cannot_write(runs, error) from None
        if aside is not None:
            aside[folder] = old
    rundir = open_run(config, runs)
    try:
        tempfile.TemporaryFile(dir=rundir.folder).close()
    except OSError as error:
        raise cannot_write(rundir.folder, error) from None
    if not on_cluster and any(rundir.folder.glob("checkpoint*")):  # a new run need not wait for torch here
        from hpcvision.training import checkpoint

        checkpoint.load(rundir)  # when none can be read, that is said here
    rundir.failure.unlink(missing_ok=True)
    return rundir


def put_back(aside: dict[Path, Path]) -> None:
    """Give runs that were set aside their places again, unless the new ones have a job: new folder -> old folder."""
    for new, old in aside.items():
        if RunDir(new).job.exists():
            continue
        try:
            shutil.rmtree(new)
            old.rename(new)
        except OSError as error:
            print(f"the earlier run is in {old} now: {error.strerror}", file=sys.stderr)
