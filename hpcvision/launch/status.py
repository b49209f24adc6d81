"""How runs are doing: what their folders say, what Slurm says, and what the two mean together, in words."""

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch import queue
from hpcvision.launch.folders import matching
from hpcvision.launch.lock import is_at_work
from hpcvision.launch.record import Record
from hpcvision.rundir import Heartbeat, RunDir, read_journal

QUIET_SECONDS = 180.0  # a heartbeat comes every 10 s, or after every step that takes longer
# What submitit and our own scripts write into a log at the beginning of every stay.
STAY_BEGINS = re.compile(r"Starting with JobEnvironment|^hpcvision: job \S+, start \d+$", re.MULTILINE)
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
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node is as it asks for; cancel it and ask for less",
    "Reservation": "it waits for its reservation",
    "Licenses": "it waits for a licence",
    "JobArrayTaskLimit": "as many tasks of its array run as may at once",
    "Prolog": "its nodes are being made ready",
    "Cleaning": "its last stay is being cleaned up",
    "JobHoldMaxRequeue": "it was started too often; scontrol release tries again",
    "JobHeldUser": "you hold it; scontrol release lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "launch failed requeued held": "it could not be started; scontrol release tries again",
    "InvalidAccount": "its account is not valid; cancel it and give another",
    "AccountNotAllowed": "the partition does not take its account; cancel it and give another",
    "QOSNotAllowed": "the partition does not take its qos; cancel it and give another",
    "InvalidQOS": "its qos is not valid; cancel it and give another",
}
LIMITED = {
    "minutes": "computing time", "wall": "run time", "gres": "GPUs", "mem": "memory", "node": "nodes", "cpu": "cores",
    "billing": "billing units", "job": "jobs",
}  # fmt: skip
"""What is limited, as parts of Slurm's hundred reasons that begin with QOS or Assoc; the first that fits."""
ENDS = {  # of these, what the run itself wrote says less
    "TIMEOUT": "the time limit ended it before it could stop by itself",
    "OUT_OF_MEMORY": "it needed more memory than it asked for; raise memory_gb in the profile",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "PREEMPTED": "a more urgent job took its place",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "Slurm's deadline for it has passed",
    "REVOKED": "another cluster took it",
}


@dataclass(frozen=True)
class Status:
    """One run or sweep, in a word and a sentence."""

    rundir: RunDir
    state: str
    """finished, running, silent, waiting, failed, stopped, new, unreadable, or unknown where Slurm gives no answer."""
    words: str
    step: int
    steps: int
    """0 of a sweep."""
    job: str = ""
    """Slurm's id, where there is one."""


def statuses(runs: Path, wanted: str | None) -> list[Status]:
    """The runs and sweeps below `runs` whose name holds `wanted`, or matches it as a pattern with * and ?."""
    found = matching(runs, wanted, sweeps=True)
    records = {rundir: Record.of(rundir) for rundir in found}
    finished = {rundir for rundir in found if is_finished(rundir)}
    # A sweep that is finished may be in the queue with more trials.
    asked = {run: record for run, record in records.items() if record and (run.is_sweep or run not in finished)}
    ids = [job for record in asked.values() for job in record.jobs]
    jobs, silence = {}, ""
    try:
        jobs = queue.jobs(ids) if ids else {}
    except UserError as error:  # the other runs are known without it
        silence = str(error)
    poor = poor_trials(runs)
    return [
        from_journal(rundir, "stopped", "poor among the trials of its sweep")
        if rundir.folder.name in poor
        else from_journal(rundir, "unknown", silence)
        if silence and rundir in asked and rundir not in finished
        else status_of_sweep(rundir, records[rundir], jobs)
        if rundir.is_sweep
        else status_of(rundir, records[rundir], jobs)
        for rundir in found
    ]


def poor_trials(sweep: Path) -> set[str]:
    """Names of the folders of the trials that the sweep's scheduler has stopped."""
    return {str(record.get("folder")) for record in read_journal(sweep / "rungs.jsonl") if record["decision"] == "stop"}


def is_finished(rundir: RunDir) -> bool:
    """True for a run that reached its last step, and for a sweep whose trials have all ended well."""
    if not rundir.is_sweep:
        return rundir.is_finished
    from hpcvision.results.sweeps import sweep_is_finished

    try:
        written = sweep_is_finished(rundir.folder / "sweep.h5")
    except UserError:  # it cannot be read; it is written again from the trials
        return False
    return written and all(ended for _, ended in trials_of(rundir))  # it may have been begun again with more trials


def trials_of(sweep: RunDir) -> list[tuple[RunDir, bool]]:
    """The runs of a sweep that have begun, each with whether it has ended."""
    poor = poor_trials(sweep.folder)
    trials = [RunDir(path.parent) for path in sweep.folder.glob("*/config.json")]
    return [(trial, trial.folder.name in poor or trial.is_finished or trial.has_diverged) for trial in trials]


def from_journal(rundir: RunDir, state: str, words: str) -> Status:
    """Of a run whose state is known, or cannot be, with its last step."""
    try:
        steps = 0 if rundir.is_sweep else rundir.read_config().train.steps
    except UserError as error:
        return Status(rundir, "unreadable", str(error), 0, 0)
    return Status(rundir, state, words, last_step(rundir), steps)


def status_of(rundir: RunDir, record: Record | None, jobs: dict[str, queue.Job]) -> Status:
    """What the run's files and Slurm say together."""
    try:
        steps = rundir.read_config().train.steps
    except UserError as error:
        return Status(rundir, "unreadable", str(error), 0, 0)
    heartbeat = Heartbeat.read(rundir)
    step = max(heartbeat.step if heartbeat else 0, last_step(rundir))
    name, job = present_job(record, jobs)
    shares = record is not None and record.runs_per_job > 1
    if rundir.is_finished:
        state, words = "finished", ""
    elif job is not None and job.lives and not (shares and rundir.failure.exists()):
        state, words = alive(job, heartbeat, shares=shares)
    else:
        state, words = over(rundir, record, job, heartbeat, has_steps=step > 0)
    return Status(rundir, state, words, step, steps, name)


def status_of_sweep(rundir: RunDir, record: Record | None, jobs: dict[str, queue.Job]) -> Status:
    """What the files of the sweep's trials and Slurm say together."""
    name, job = present_job(record, jobs)
    if is_finished(rundir) and not (job and job.lives):
        return Status(rundir, "finished", "", 0, 0, name)
    trials = trials_of(rundir)
    far = f"{sum(ended for _, ended in trials)} of {len(trials)} trials have ended" if trials else ""
    beats = [heartbeat for trial, _ in trials if (heartbeat := Heartbeat.read(trial))]
    newest = replace(max(beats, key=lambda heartbeat: heartbeat.time), numbers=far) if beats else None
    if job is not None and job.lives:
        state, words = alive(job, newest)
    else:
        state, words = over(rundir, record, job, newest, has_steps=bool(beats))
        words = words if state == "running" or not far else f"{far}; {words}"
    return Status(rundir, state, words, 0, 0, name)


def present_job(record: Record | None, jobs: dict[str, queue.Job]) -> tuple[str, queue.Job | None]:
    """(id, job) of a chain's job that runs, else of the next, else of the last that ended, as far as Slurm knows it."""
    known = [(name, jobs[name]) for name in (record.jobs if record else []) if name in jobs]
    living = [pair for pair in known if pair[1].lives]
    present = [pair for pair in living if pair[1].state != "PENDING"] or living or known[-1:]
    return present[0] if present else (record.jobs[-1] if record and record.jobs else "", None)


def alive(job: queue.Job, heartbeat: Heartbeat | None, *, shares: bool = False) -> tuple[str, str]:
    """(state, sentence) of a run whose job waits or runs; shares: the job trains several, one after the other."""
    if job.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD"):
        start = f"; expected to start {job.start.replace('T', ' ')}" if job.start else ""
        return "waiting", why_it_waits(job.reason) + start
    began, now = start_of(job), time.time()
    if heartbeat is None or (began is not None and heartbeat.time < began):
        if shares:
            return "waiting", f"its job runs on {job.nodes} and trains several runs, one after the other"
        if began is not None and now - began > QUIET_SECONDS:
            minutes = (now - began) / 60
            return "silent", f"Slurm says {job.state} for {minutes:.0f} minutes, no heartbeat yet; look into its log"
        return "running", f"starting on {job.nodes}"
    age = now - heartbeat.time
    if age > QUIET_SECONDS:
        return "silent", f"Slurm says {job.state}, no heartbeat for {age / 60:.0f} minutes; look into its log"
    return "running", f"on {job.nodes}: {heartbeat.numbers}"


def why_it_waits(reason: str) -> str:
    """Slurm's reason in words; one that is not known as it is."""
    word = reason.partition(",")[0]  # ReqNodeNotAvail, UnavailableNodes:...
    whose = "the qos" if word.startswith("QOS") else "your account" if word.startswith("Assoc") else ""
    limited = next((words for part, words in LIMITED.items() if part in word.lower()), "")
    if word in WAITS or not whose or not limited:
        return WAITS.get(word, reason or "in the queue")
    if word.startswith("QOSMin"):
        return f"it asks for too little, {whose} wants more {limited}; cancel it"
    if "PerJob" in word or "PerNode" in word:
        return f"it asks for more {limited} than {whose} allows; cancel it and ask for less"
    if "Submit" in word:
        return f"you have as many jobs in the queue as {whose} allows"
    if "Minutes" in word and "RunMinutes" not in word:
        return f"the computing time that {whose} allows is used up"
    return f"{whose} allows no more {limited} at a time"


def over(
    rundir: RunDir, record: Record | None, job: queue.Job | None, heartbeat: Heartbeat | None, *, has_steps: bool
) -> tuple[str, str]:
    """(state, sentence) of an unfinished run or sweep that no job of Slurm's trains now."""
    if record is None or (heartbeat and not heartbeat.job_id.startswith("slurm")):
        beats = heartbeat is not None and time.time() - heartbeat.time < QUIET_SECONDS
        at_work = is_at_work(rundir)
        if heartbeat and beats and at_work is not False:
            return "running", f"on {heartbeat.host}: {heartbeat.numbers}"
        if at_work:
            return "running", "on this machine: no step for some minutes" if heartbeat else "starting on this machine"
    again = "the same command with --resume" if rundir.is_sweep else "the same command"
    how = "hpcvision resume" if record and record.place else again
    on = f"; {how} goes on from {'where it stopped' if rundir.is_sweep else 'its last checkpoint'}"
    if job is not None and job.state in ENDS:  # what ranks wrote then is only that they have lost another one
        return "stopped" if has_steps or job.state == "CANCELLED" else "failed", ENDS[job.state] + on
    culprit = killed_rank(record) if record else ""
    if culprit:
        return "failed", culprit + on
    if rundir.failure.exists():
        lines = rundir.failure.read_text(errors="replace").strip().splitlines() or [""]
        text = lines[0] if len(lines) == 1 else f"{lines[0].partition(':')[0]}: {lines[-1]}"
        return "failed", f"{text} ({rundir.failure.name} has the traceback)" if len(lines) > 1 else text
    if job is not None and job.state == "FAILED":
        return "failed", "it ended with an error; see hpcvision logs"
    if has_steps:
        return "stopped", on.removeprefix("; ")
    if record and job is None:
        return "failed", f"Slurm no longer knows its job {record.jobs[-1]}; see hpcvision logs"
    return "new", "no step yet" if job is None else f"Slurm says {job.state}"


def killed_rank(record: Record) -> str:
    """Which rank a signal ended first in the last stay, as srun says it; nothing when the first had another end.

    That rank could write nothing itself, and what the others wrote is only that they have lost it.
    """
    try:
        stay = STAY_BEGINS.split(Path(record.log).read_text(errors="replace"))[-1]
    except OSError:
        return ""
    found = re.search(r"srun: error: (\S+): tasks? (\S+): (.+)", stay)
    if found is None or found[3].startswith(("Exited", "Out Of Memory")):
        return ""
    return f"rank {found[2]} on {found[1]} was ended by the system or by hand ({found[3].strip()})"


def start_of(job: queue.Job) -> float | None:
    """Seconds since the epoch of the job's present start, where Slurm tells."""
    try:
        return time.mktime(time.strptime(job.start, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def last_step(rundir: RunDir) -> int:
    """The step up to which the journal tells."""
    return max((event.get("step", 0) for event in read_journal(rundir.log)), default=0)
