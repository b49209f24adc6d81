"""Submission to Slurm through submitit: jobs, arrays, chains, and all that can be refused before the queue."""

import contextlib
import io
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from hpcvision.errors import UserError
from hpcvision.launch import accounting, queue
from hpcvision.launch.batch import (
    Placement,
    check_path,
    lines_after,
    lines_before,
    options,
    srun_options,
)
from hpcvision.launch.job import TrainJob
from hpcvision.launch.profile import Profile
from hpcvision.launch.space import disk_of
from hpcvision.rundir import RunDir
from hpcvision.stopping import leave_seconds

NATIVE = {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "time", "open-mode", "signal"}
"""Options that submitit writes itself."""


class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's executor with the site's own submit command, and deaf to the job that it may be in."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        super().__init__(folder, python=profile.python)
        self.submit_command = shlex.split(profile.submit_command)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        unset = [f"--unset={name}" for name in os.environ if name not in queue.outside()]
        return ["env", *unset, *self.submit_command, str(submission_file_path)]

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[submitit.Job[Any]]:
        # submitit makes an executor of its own for an array, which knows neither of the two settings above.
        if len(delayed_submissions) == 1:
            alone: list[submitit.Job[Any]] = super()._internal_process_submissions(delayed_submissions)
            return alone
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters["map_count"] = len(delayed_submissions)
        try:
            first: submitit.Job[Any] = self._submit_command(self._submitit_command_str)
        finally:
            del self.parameters["map_count"]
        tasks = list(range(first.num_tasks))
        jobs: list[submitit.Job[Any]] = []
        for number, delayed in enumerate(delayed_submissions):
            job = submitit.SlurmJob[Any](folder=self.folder, job_id=f"{first.job_id}_{number}", tasks=tasks)
            beside = self.folder / f".{job.job_id}.pkl"
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            delayed.dump(beside)
            job.paths.move_temporary_file(beside, "submitted_pickle")  # a task that is early waits for it
            jobs.append(job)
        return jobs


@dataclass(frozen=True)
class Submitted:
    """One Slurm job, or one task of an array, and the runs in it."""

    job_id: str
    log: Path
    runs: tuple[RunDir, ...]


def executor_for(name: str, folder: Path, profile: Profile, place: Placement, after: str | None = None) -> Executor:
    """An executor that writes what `batch.options` asks for."""
    check_path(folder)
    queue.check_there("srun")
    asked = options(name, profile, place, after=after)
    executor = Executor(folder, profile)
    executor.update_parameters(
        job_name=asked["job-name"],
        nodes=place.nodes,
        ntasks_per_node=place.tasks_per_node,
        cpus_per_task=profile.cpus_per_task,
        time=place.minutes,
        signal_delay_s=round(leave_seconds(60 * place.minutes)),
        stderr_to_stdout=True,
        wckey=None,  # submitit's own would be refused where wckeys are enforced
        setup=lines_before(profile, f'{shlex.quote(str(folder))}/again-"$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}"'),
        teardown=lines_after(profile),
        srun_args=srun_options(profile),
        # An option without a value is True for submitit.
        additional_parameters={key: value or True for key, value in asked.items() if key not in NATIVE},
    )
    return executor


def script_of(executor: Executor, tasks: int) -> str:
    """The batch script that the executor submits; of an array when there are several tasks."""
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    return str(executor._make_submission_file_text(executor._submitit_command_str, "0"))


def submit(executor: Executor, groups: Sequence[Sequence[RunDir]], place: Placement) -> list[Submitted]:
    """Submit one job, or an array with a task for every group of runs."""
    limit = 60.0 * place.minutes
    calls = [
        DelayedSubmission(
            TrainJob(
                str(group[0].folder), time_limit_seconds=limit, further=tuple(str(run.folder) for run in group[1:])
            )
        )
        for group in groups
    ]
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:  # what sbatch says, which submitit passes on
            jobs = executor._internal_process_submissions(calls)
    except (FailedJobError, FailedSubmissionError) as error:
        raise queue.refusal(said.getvalue() or str(error)) from None
    return [
        Submitted(job.job_id, Path(job.paths.stdout), tuple(group)) for job, group in zip(jobs, groups, strict=True)
    ]


def check(profile: Profile, place: Placement) -> None:
    """Raise UserError for what this cluster would refuse, or take and never start."""
    known, manager = queue.partitions(), accounting.Manager()
    check_place(profile, place, known)
    check_account(profile, manager)
    check_stay(profile, place, known, manager)


def check_place(profile: Profile, place: Placement, known: dict[str, dict[str, str]]) -> None:
    """Raise UserError for what the partition cannot give: not there, closed to the account, too long, too many GPUs.

    known: all partitions.
    """
    names = partitions_of(profile, known)
    for name in names or [""]:
        if name not in known:
            raise UserError(f"there is no partition {name!r} on this cluster; choose one of {', '.join(known)}")
    name, chosen = ",".join(names), [known[name] for name in names]
    states = {facts.get("State", "UP") for facts in chosen}
    if not states & {"UP", "DOWN"}:
        raise UserError(f"partition {name} takes no jobs ({', '.join(sorted(states))}); choose another")
    allowed = {word.lower() for facts in chosen for word in facts.get("AllowAccounts", "ALL").split(",")}
    account = profile.account or (None if "all" in allowed else accounting.default_account())
    # sbatch takes such a job and never starts it. Newer Slurm also lets in the accounts below those that are named.
    if account and not allowed & {"all", account.lower()} and not allowed & accounting.above(account.lower()):
        which = "" if profile.account else ", your default one"
        choices = ", ".join(sorted(allowed))
        raise UserError(f"partition {name} does not take account {account!r}{which}; set account to one of {choices}")
    taken = {word.lower() for facts in chosen for word in facts.get("AllowQos", "ALL").split(",")}
    wanted = qos_of(profile)
    if wanted and not taken & {"all", "n/a", *wanted} and accounting.is_enforced("qos"):
        choices = ", ".join(sorted(taken))
        raise UserError(f"partition {name} does not take qos {profile.qos!r}; set qos to one of {choices}")
    nodes = max(most_nodes(facts) for facts in chosen)
    if place.nodes > nodes and not accounting.may_exceed("PartitionMaxNodes", wanted):
        raise UserError(f"--nodes={place.nodes} is above the {nodes} of partition {name}; give fewer")
    if place.gpus_per_node and profile.gpu_request != "none":
        there = queue.gpus_of_nodes(name)
        fitting = [count for kind, count in there if profile.gpu_type in (None, kind)]
        if max(fitting, default=0) < place.gpus_per_node:
            kinds = ", ".join(f"{count} of type {kind or 'gpu'}" for kind, count in there) or "none"
            asked = f"{place.gpus_per_node} GPUs{f' of type {profile.gpu_type}' if profile.gpu_type else ''}"
            raise UserError(f"{asked} a node cannot be had in partition {name}, whose nodes have {kinds}")


def partitions_of(profile: Profile, known: dict[str, dict[str, str]]) -> list[str]:
    """The partitions that the profile names, else the default one."""
    default = [name for name, facts in known.items() if facts.get("Default") == "YES"]
    return profile.partition.split(",") if profile.partition else default


def qos_of(profile: Profile) -> set[str]:
    """The qos that the profile names, of which Slurm 24.11 takes several, in small letters."""
    return set(profile.qos.lower().split(",")) if profile.qos else set()


def most_nodes(facts: dict[str, str]) -> int:
    """How many nodes one job may have in a partition."""
    total, limit = int(facts.get("TotalNodes", "0")), facts.get("MaxNodes", "UNLIMITED")
    return min(total, int(limit)) if limit.isdigit() else total


def check_account(profile: Profile, manager: accounting.Manager) -> None:
    """Raise UserError for an account or QOS that this user does not have, where Slurm looks at that."""
    account = profile.account.lower() if profile.account else None  # Slurm does the same
    if profile.qos is None and (account is None or account in manager.of_accounts):
        return
    accounts = accounting.accounts()
    if account is not None and accounts and account not in accounts and accounting.is_enforced("associations"):
        raise UserError(f"you have no account {profile.account!r} here; yours are {', '.join(sorted(accounts))}")
    allowed = accounts.get(account, set()) if account else set().union(*accounts.values())
    if profile.qos is not None and allowed and not qos_of(profile) & allowed and accounting.is_enforced("qos"):
        raise UserError(f"qos {profile.qos!r} is not allowed here; yours are {', '.join(sorted(allowed))}")


def check_stay(
    profile: Profile, place: Placement, known: dict[str, dict[str, str]], manager: accounting.Manager
) -> None:
    """Raise UserError for a time limit that partition, QOS or account does not allow: the job would wait for ever."""
    names, qos = partitions_of(profile, known), qos_of(profile)
    chosen = [known[name] for name in names if name in known]
    limit = max((queue.minutes(facts.get("MaxTime", "UNLIMITED")) for facts in chosen), default=float("inf"))
    if place.minutes > limit and not accounting.may_exceed("PartitionTimeLimit", qos):
        raise UserError(
            f"--minutes={place.minutes} is above the {limit:.0f} of partition {','.join(names)}; give fewer"
        )
    account = profile.account.lower() if profile.account else None
    limit, whose = manager.longest_stay(account, qos, [facts.get("QoS", "").lower() for facts in chosen])
    if place.minutes > limit and accounting.is_enforced("limits"):
        raise UserError(f"--minutes={place.minutes} is above the {limit:.0f} of {whose}; give fewer")


def check_shared(folder: Path, profile: Profile, what: str = "choose") -> None:
    """Raise UserError for a folder that is certainly this machine's own; what: how to begin the advice."""
    resolved = folder.resolve()
    own = [Path(name) for name in ("/tmp", "/var/tmp", "/dev/shm", "/run")]
    if profile.node_folder:
        own.append(Path(os.path.expandvars(profile.node_folder)))
    shared = profile.shared_folder or "a folder that login node and nodes share"
    for place in own:
        if resolved.is_relative_to(place):
            raise UserError(f"the nodes cannot see {folder}, as every machine has its own {place}; {what} {shared}")
    if (kind := disk_of(folder)) in ("tmpfs", "ramfs"):
        raise UserError(f"the nodes cannot see {folder}, which is in this machine's memory ({kind}); {what} {shared}")
