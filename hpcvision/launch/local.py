"""Processes of one run on this machine, without a batch system."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from types import FrameType

from hpcvision.config import RunConfig
from hpcvision.errors import TrainingStopped, UserError
from hpcvision.launch.job import FAILURE_PIPE
from hpcvision.rundir import RunDir
from hpcvision.stopping import INTERRUPTED, StopRequest

# Below so many images a process spends more on the rest of a step than on its share of the batch.
LEAST_IMAGES = 32
# Plain large convolutions: two threads compute a step of 256 images in 0.55 of one's time (baby_mobilenet: 0.66), and
# what two processes exchange at 64 images, the job's batch, is a third of a step (Xeon, 2 cores, benchmarks/choice.py).
THREADS_ARE_FASTER = {"addnist_cnn"}
# malloc in huge pages, which can only be asked for before a process starts: 9 % less CPU time for a training step.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
GRACE_SECONDS = 15.0  # between the first process that failed and the end of the others


def choose_processes(config: RunConfig, places: int | None = None) -> int:
    """Processes for a run: one for every GPU or core that may be used, as far as the batch can be split that far.

    places: GPUs, or else the cores of the affinity mask, on which one-threaded processes share a batch faster than the
    threads of one process do (benchmarks/choice.py), but for `THREADS_ARE_FASTER`.
    """
    if config.model.kind in THREADS_ARE_FASTER:
        return 1
    batch = config.train.global_batch_size
    most = max(1, min(places or usable_cores(), batch // LEAST_IMAGES))
    return max(count for count in range(1, most + 1) if batch % count == 0)


def usable_cores() -> int:
    """Cores of the affinity mask, or as many as a Slurm job asked for where no mask holds it to them."""
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, int(os.environ.get("SLURM_CPUS_PER_TASK") or allowed))


def run_processes(rundir: RunDir, processes: int) -> None:
    """Train, or draw what is requested in the folder, with `processes` ranks, and wait for them.

    Raises UserError with what the first failing rank said.
    Rank 0 has the terminal, the others write to rank-<n>.log in the run folder. SIGTERM and SIGUSR go on to all ranks,
    which then save and stop together.
    """
    environment = (
        HUGE_PAGES
        | os.environ
        | {
            "HPCVISION_WORLD_SIZE": str(processes),
            "HPCVISION_JOB_ID": f"local-{uuid.uuid4().hex[:8]}",
        }
    )
    from_ranks, to_launcher = os.pipe()
    environment[FAILURE_PIPE] = str(to_launcher)
    command = [sys.executable, "-m", "hpcvision.launch.worker", str(rundir.folder)]
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, forward) for number in numbers}
    # The terminal sends Ctrl-C to the children itself; this process waits until they have saved.
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    # Blocked in the children until they know what to do with them: a signal would end one that still imports torch.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
    try:
        for rank in range(processes):
            output = None if rank == 0 else (rundir.folder / f"rank-{rank}.log").open("ab")
            children.append(
                subprocess.Popen(
                    command,
                    env=environment | {"HPCVISION_RANK": str(rank)},
                    stdout=output,
                    stderr=output,
                    pass_fds=[to_launcher],
                )
            )
            if output:
                output.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        rank, code = wait(children)
        os.close(to_launcher)
        to_launcher = -1
        if code:
            raise failure(rundir, rank, code, os.read(from_ranks, 2**16).decode())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for descriptor in (from_ranks, to_launcher):
            if descriptor >= 0:
                os.close(descriptor)
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def wait(children: list[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """(rank, exit code) of the culprit, one that was killed before one that raised, or (0, 0); ends the others."""
    failed_at = None
    culprit = (0, 0)
    while True:
        codes = [child.poll() for child in children]
        bad = [(rank, code) for rank, code in enumerate(codes) if code]
        if bad and culprit[1] >= 0:
            killed = [(rank, code) for rank, code in bad if code < 0]
            culprit = killed[0] if killed else culprit if culprit[1] else bad[0]
        if all(code is not None for code in codes):
            return culprit
        if bad and failed_at is None:
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            for child in children:
                child.kill()
            for child in children:
                child.wait()
            return culprit
        time.sleep(0.05)


def failure(rundir: RunDir, rank: int, code: int, piped: str) -> UserError:
    """What the user is told: the words of the rank that failed first, its traceback printed before."""
    if code < 0:
        name = signal.Signals(-code).name
        if rundir.is_finished and rundir.has_read_test:  # it was about to end, or drew the pictures
            return TrainingStopped(f"rank {rank}: ended by {name}, but the run is finished; the same command shows it")
        # The others only failed because this one was gone, and it could not write itself.
        why = " from outside; the system does so when memory runs out" if -code == signal.SIGKILL else "; see its log"
        again = "" if rundir.request.exists() else ". The same command goes on from the last checkpoint"
        text = f"rank {rank}: ended by {name}{why}{again}"
        with contextlib.suppress(OSError):
            rundir.failure.write_text(f"{text}\n")
    elif piped:  # a rank that can write no file was first: the others could only fail because of it
        text = piped.partition("\0")[0].rstrip()
    elif rundir.failure.exists():
        text = rundir.failure.read_text().rstrip()
    elif code == INTERRUPTED:
        text = "stopped by Ctrl-C"
    else:
        text = f"rank {rank}: ended with exit code {code} and no words; see the log of that process"
    return in_one_line(text, rundir, UserError if code == UserError.exit_code else TrainingStopped)


def in_one_line(text: str, rundir: RunDir, kind: type[UserError]) -> UserError:
    """An error with the last line of a traceback, which is printed whole, or with the one line that `text` is."""
    lines = text.splitlines()
    if len(lines) == 1:
        return kind(lines[0])
    print(text, file=sys.stderr, flush=True)
    # What was drawn in leaves nothing behind; a run keeps the file.
    where = "" if rundir.request.exists() else f" and in {rundir.failure}"
    return kind(f"{lines[0].partition(':')[0]}: {lines[-1]}; the traceback is above{where}")
