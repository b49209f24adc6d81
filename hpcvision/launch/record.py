"""Which Slurm jobs a run or a sweep is in or was in: job.json of its folder."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hpcvision.place import Place
from hpcvision.rundir import RunDir, write_json

# Names the log of a batch script that submitit has not written.
LOG = "HPCVISION_LOG"


@dataclass(frozen=True)
class Record:
    """What is known of a run's submission."""

    cluster: str
    """The profile, by name or path; empty for a run that only plain `sbatch` has started."""
    jobs: list[str]
    """Slurm's ids as squeue shows them, the links of a chain in their order."""
    log: str
    """Of rank 0 of the last job; empty when nobody knows."""
    submitted: str
    """When, in local time."""
    place: dict[str, int]
    """A Placement; empty without a profile."""
    chain: int = 1
    """So many jobs were submitted one after the other."""
    runs_per_job: int = 1
    """So many runs share the job."""
    command: list[str] = field(default_factory=list)
    """Of a sweep: the words after `hpcvision` that submit what is left of it."""

    @staticmethod
    def of(rundir: RunDir) -> "Record | None":
        """The record in the folder; None where there is none."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Record(**json.loads(rundir.job.read_text()))
        return None

    def write(self, rundir: RunDir) -> None:
        """Put it into the folder."""
        write_json(rundir.job, asdict(self))


def record_own_job(rundir: RunDir, place: Place, environment: Mapping[str, str] | None = None) -> None:
    """Write down the Slurm job of this process, where `hpcvision submit` has not: it was started by plain `sbatch`.

    What an earlier submission of the run asked for stays, so that `hpcvision resume` asks for it again.
    """
    env = os.environ if environment is None else environment
    if not place.is_slurm_task or "SUBMITIT_EXECUTOR" in env:
        return
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else env["SLURM_JOB_ID"]
    known = Record.of(rundir) or Record("", [], "", "", {})
    if job in known.jobs:
        return
    log = env.get(LOG, "")
    with contextlib.suppress(OSError):  # then the heartbeat alone tells of the run
        written = log if Path(log).is_file() else ""
        replace(known, jobs=[*known.jobs, job], log=written, submitted=now()).write(rundir)


def now() -> str:
    """Local time for records, such as 2026-11-23T06:00:00+0000."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
