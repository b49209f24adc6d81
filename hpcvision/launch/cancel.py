"""Ending the jobs of runs and sweeps, and what this machine trains without Slurm; both save first."""

import contextlib
import os
import signal
import time
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch import queue
from hpcvision.launch.folders import matching
from hpcvision.launch.lock import holder, starter
from hpcvision.launch.record import Record
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
    left = []
    for rundir in found:
        record, is_trial = Record.of(rundir), RunDir(rundir.folder.parent).is_sweep  # a sweep only begins a trial again
        if not is_trial and not (record and set(record.jobs) & set(cancelled)):
            left.append(rundir)
    asked, deadline = [], time.monotonic() + 30
    while left:
        # A signal would kill what is still starting, so it gets its own when it comes to hold its folder.
        starting = [rundir for rundir in left if starter(rundir) and time.monotonic() < deadline]
        for rundir in left:
            if process := holder(rundir):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGTERM)
                    asked.append(rundir.folder.name)
        left = [rundir for rundir in starting if rundir.folder.name not in asked]
        time.sleep(0.2 if left else 0)
    return asked
