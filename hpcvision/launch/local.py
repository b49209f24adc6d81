"""Processes of one run on this machine, without a batch system."""

import os
import signal
import subprocess
import sys
import time
import uuid
from types import FrameType

from hpcvision.errors import TrainingStopped, UserError
from hpcvision.rundir import RunDir

GRACE_SECONDS = 15.0  # between the first process that failed and the end of the others


def run_processes(rundir: RunDir, processes: int) -> int:
    """Train with `processes` ranks and wait for them; the exit code of the run, negative when a rank was killed.

    Rank 0 has the terminal, the others write to rank-<n>.log in the run folder. SIGTERM and SIGUSR go on to all ranks,
    which then save and stop together.
    """
    environment = os.environ | {
        "HPCVISION_WORLD_SIZE": str(processes),
        "HPCVISION_JOB_ID": f"local-{uuid.uuid4().hex[:8]}",
    }
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
    try:
        for rank in range(processes):
            output = None if rank == 0 else (rundir.folder / f"rank-{rank}.log").open("ab")
            children.append(
                subprocess.Popen(command, env=environment | {"HPCVISION_RANK": str(rank)}, stdout=output, stderr=output)
            )
            if output:
                output.close()
        rank, code = wait(children)
        if code < 0:
            # The others only failed because this one was gone, and it could not write itself.
            rundir.failure.write_text(
                f"rank {rank}: ended by {signal.Signals(-code).name} from outside; the system does so when memory runs "
                "out. The same command goes on from the last checkpoint\n"
            )
        return code
    finally:
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


def raise_failure(rundir: RunDir, code: int) -> None:
    """Raise UserError with what the first failing rank wrote; nothing when the run did not fail."""
    if code:
        text = rundir.failure.read_text().rstrip() if rundir.failure.exists() else f"a process ended with code {code}"
        if code == UserError.exit_code:
            raise UserError(text)
        first, *_, last = [*text.splitlines(), ""] if "\n" not in text else text.splitlines()
        if not last:
            raise TrainingStopped(first)
        raise TrainingStopped(f"{first.partition(':')[0]}: {last}; the traceback is in {rundir.failure}")
