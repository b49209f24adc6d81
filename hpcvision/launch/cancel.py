"""Ending the jobs of runs and sweeps, and what this machine trains without Slurm; both save first."""

import contextlib
import os
import signal
import time
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch import queue
from hpcvision.launch.lock import holder, starter
from hpcvision.launch.record import Record
from hpcvision.launch.status import matching
from hpcvision.rundir import RunDir


def cancel_jobs(found: list[RunDir], runs: Path) -> tuple[list[str], list[str]]:
    """Cancel the jobs of these runs and sweeps that live; (their ids, the names of other runs that shared them)."""
    ids = [job for rundir in found if (record := Record.of(rundir)) for job in record.jobs]
    known = queue.in_queue(ids)
    living = [name for name in dict.fromkeys(ids) if name in known and known[name].lives]
    others = [
        rundir.folder.name
        for rundir in matching(runs, None)
        if rundir not in found and (record := Record.of(rundir)) and set(record.jobs) & set(living)
    ]
    if living:
        answer = queue.ask("scancel", *living)
        if answer.returncode and any(job.lives for job in queue.in_queue(living).values()):
            raise UserError(f"scancel: {queue.first_line(answer)}")
    return living, others


def stop_here(found: list[RunDir], cancelled: list[str]) -> list[str]:
    """Tell the processes that train these runs and sweeps on this machine to save and end; what they train, by name.

    cancelled: ids of jobs that Slurm ends itself.
    """
    asked = []
    for rundir in found:
        record, process = Record.of(rundir), holder(rundir) or once_begun(rundir)
        if RunDir(rundir.folder.parent).is_sweep:  # it would only begin the trial again
            continue
        if process and not (record and set(record.jobs) & set(cancelled)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGTERM)
                asked.append(rundir.folder.name)
    return asked


def once_begun(rundir: RunDir) -> int | None:
    """The process that comes to hold a folder for which submitit has started some: before, a signal would kill it."""
    deadline = time.monotonic() + 30
    while starter(rundir) and time.monotonic() < deadline:
        time.sleep(0.2)
        if process := holder(rundir):
            return process
    return holder(rundir)
