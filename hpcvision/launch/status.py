"""How runs are doing: what their folders say, what Slurm says, and what the two mean together, in words."""

import fnmatch
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch import queue
from hpcvision.launch.cluster import Record
from hpcvision.rundir import Heartbeat, RunDir, read_journal

QUIET_SECONDS = 180.0  # a heartbeat comes every 10 s, or after every step that takes longer
WAITS = {
    "Priority": "others go first",
    "Resources": "all fitting nodes are busy",
    "Dependency": "it follows another job",
    "DependencyNeverSatisfied": "the job it follows failed; cancel it",
    "BeginTime": "it begins again in a moment",
    "PartitionTimeLimit": "it asks for more time than the partition gives; cancel it and give fewer --minutes",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives; cancel it and give fewer --nodes",
    "ReqNodeNotAvail": "the nodes it needs are down or reserved",
    "QOSMaxJobsPerUserLimit": "you have as many jobs running as the qos allows",
    "QOSMaxSubmitJobPerUserLimit": "you have as many jobs in the queue as the qos allows",
    "QOSMaxGRESPerUser": "you use as many GPUs as the qos allows",
    "AssocGrpGRES": "your account uses as many GPUs as it may",
    "AssocGrpCPUMinutesLimit": "your account has used up its CPU time",
    "AssocGrpGRESMinutes": "your account has used up its GPU time",
    "JobHeldUser": "you hold it; scontrol release lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "launch failed requeued held": "it could not be started; scontrol release tries again",
    "InvalidAccount": "its account is not valid; cancel it and give another",
    "InvalidQOS": "its qos is not valid; cancel it and give another",
}
ENDS = {
    "TIMEOUT": "the time limit ended it before it could stop by itself",
    "OUT_OF_MEMORY": "it needed more memory than it asked for; raise memory_gb in the profile",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "PREEMPTED": "a more urgent job took its place",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "Slurm's deadline for it has passed",
    "FAILED": "it ended with an error",
    "REVOKED": "another cluster took it",
}


@dataclass(frozen=True)
class Status:
    """One run, in a word and a sentence."""

    rundir: RunDir
    state: str
    """finished, running, silent, waiting, failed, stopped or new."""
    words: str
    step: int
    steps: int
    job: str = ""
    """Slurm's id, where there is one."""


def statuses(runs: Path, wanted: str | None) -> list[Status]:
    """The runs below `runs` whose folder's name holds `wanted`, or matches it as a pattern with * and ?."""
    found = matching(runs, wanted)
    records = {rundir: Record.of(rundir) for rundir in found}
    ids = [job for record in records.values() if record for job in record.jobs]
    jobs = queue.jobs(ids) if ids else {}
    return [status_of(rundir, records[rundir], jobs) for rundir in found]


def matching(runs: Path, wanted: str | None) -> list[RunDir]:
    """Run folders by name or fingerprint, or a part of either; raises UserError when there is none."""
    folders = sorted(path for path in runs.iterdir() if (path / "config.json").exists()) if runs.is_dir() else []
    if wanted is None:
        return [RunDir(folder.absolute()) for folder in folders]
    name = Path(wanted).name
    chosen = [folder for folder in folders if name in folder.name or fnmatch.fnmatch(folder.name, name)]
    exact = [folder for folder in folders if name == folder.name]
    if not chosen:
        raise UserError(f"no run in {runs} has {wanted!r} in its name; see hpcvision status, or give --runs")
    return [RunDir(folder.absolute()) for folder in exact or chosen]


def status_of(rundir: RunDir, record: Record | None, jobs: dict[str, queue.Job]) -> Status:
    """What the run's files and Slurm say together."""
    steps = rundir.read_config().train.steps
    heartbeat = Heartbeat.read(rundir)
    step = max(heartbeat.step if heartbeat else 0, last_step(rundir))
    age = time.time() - heartbeat.time if heartbeat else None
    known = [(name, jobs[name]) for name in (record.jobs if record else []) if name in jobs]
    # Of a chain the one that runs, else the next, else the last that ended.
    living = [pair for pair in known if pair[1].lives]
    present = [pair for pair in living if pair[1].state != "PENDING"] or living or known[-1:]
    name, job = present[0] if present else ("", None)
    state, words = explained(rundir, job, age, heartbeat, step)
    if state == "failed" and record and (culprit := killed_rank(Path(record.log))):
        words = f"{culprit}; hpcvision resume goes on from step {step:,}"
    return Status(rundir, state, words, step, steps, name)


def explained(
    rundir: RunDir, job: queue.Job | None, age: float | None, heartbeat: Heartbeat | None, step: int
) -> tuple[str, str]:
    """(state, sentence) of a run."""
    if rundir.is_finished:
        return "finished", ""
    numbers = heartbeat.numbers if heartbeat else ""
    if job is not None and job.lives:
        if job.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD"):
            start = f"; expected to start {job.start.replace('T', ' ')}" if job.start else ""
            return "waiting", WAITS.get(job.reason, job.reason or "in the queue") + start
        if age is None or (heartbeat and heartbeat.job_id and not is_of_this_stay(heartbeat, job)):
            return "running", f"starting on {job.nodes}"
        if age > QUIET_SECONDS:
            return "silent", f"Slurm says {job.state}, no heartbeat for {age / 60:.0f} minutes; look into its log"
        return "running", f"on {job.nodes}: {numbers}"
    if (
        age is not None
        and age < QUIET_SECONDS
        and heartbeat
        and job is None
        and not heartbeat.job_id.startswith("slurm")
    ):
        return "running", f"on {heartbeat.host}: {numbers}"
    if rundir.failure.exists():
        lines = rundir.failure.read_text(errors="replace").strip().splitlines() or [""]
        rank = lines[0].partition(":")[0]
        text = lines[0] if len(lines) == 1 else f"{rank}: {lines[-1]}"
        return "failed", f"{text} ({rundir.failure.name} has the traceback)" if len(lines) > 1 else text
    if job is not None and job.state in ENDS:
        return "stopped" if step else "failed", f"{ENDS[job.state]}; hpcvision resume goes on from step {step:,}"
    if step:
        return "stopped", f"hpcvision resume goes on from step {step:,}"
    return "new", "no step yet" if job is None else f"Slurm says {job.state}"


def killed_rank(log: Path) -> str:
    """Which rank a signal ended first in the last stay, as srun says it; nothing when it was none.

    That rank could write nothing itself, and what the others wrote is only that they have lost it.
    """
    if not log.exists():
        return ""
    stay = log.read_text(errors="replace").rpartition("Starting with JobEnvironment")[2]
    found = re.search(r"srun: error: (\S+): tasks? (\S+): (?!Exited)(.+)", stay)
    return f"rank {found[2]} on {found[1]} was ended by the system or by hand ({found[3].strip()})" if found else ""


def is_of_this_stay(heartbeat: Heartbeat, job: queue.Job) -> bool:
    """False for a heartbeat from before the job's present start."""
    try:
        began = time.mktime(time.strptime(job.start, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return True
    return heartbeat.time >= began


def last_step(rundir: RunDir) -> int:
    """The step up to which the journal tells."""
    return max((event.get("step", 0) for event in read_journal(rundir.log)), default=0)


def cancel(found: Iterable[Status]) -> list[str]:
    """Cancel the jobs of these runs that live; gives their ids."""
    ids = [job for status in found if (record := Record.of(status.rundir)) for job in record.jobs]
    living = [name for name, job in queue.in_queue(ids).items() if job.lives]
    if living:
        answer = queue.ask("scancel", *living)
        if answer.returncode:
            raise UserError(f"scancel: {queue.first_line(answer)}")
    return living
