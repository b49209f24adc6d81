"""A sweep as a Slurm job: over several nodes, or as an array of shares with a job after it that does the rest."""

import shlex
import signal
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hpcvision.errors import UserError
from hpcvision.launch import queue, slurm
from hpcvision.launch.batch import Placement, check_path, script
from hpcvision.launch.checked import facts_of
from hpcvision.launch.profile import Profile
from hpcvision.launch.record import Record, now
from hpcvision.report import tables
from hpcvision.rundir import RunDir, data_folder
from hpcvision.sweep.driver import Share, check_folder, check_share, folder_of, say_what
from hpcvision.sweep.plan import Plan, check_objective, make_plan
from hpcvision.sweep.tables import print_planned


def submit_sweep(
    wanted: str,
    words: list[str],
    overrides: dict[str, Any],
    runs: Path,
    *,
    again: list[str],
    cluster: str,
    profile: Profile,
    place: Placement,
    trials: int | None = None,
    array: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Find on the login node what is wrong, then hand the sweep to Slurm and say where its log is.

    words: what to write after `hpcvision sweep` on the nodes;  again: after `hpcvision` to submit what is left of it. A
    sweep that is in the queue is not submitted again.
    """
    plan, console = make_plan(wanted, overrides, trials=trials), tables.console()
    folder = folder_of(plan, runs)
    check_here(plan, folder, runs, cluster, profile, place, array)
    job = partial(script, f"{plan.name}-sweep", profile, place, ["-m", "hpcvision", "sweep", *words])
    if dry_run:
        say_what(plan, console)
        print_planned(plan, console)
        text = job(log=log_of(folder, array), array=array)
        print(text)
        print(f"# {queue.test_only(text, profile.submit_command)}")
        if array:
            print("# a job of one node after it would do what is left, and write sweep.h5")
        print("# nothing was submitted")
        return
    is_new = not (folder / "sweep.json").exists()
    check_folder(plan, folder, resume=resume)
    (folder / "submitted").mkdir(exist_ok=True)
    # Ctrl-C and a lost connection wait until it is written down which jobs there are.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
    jobs: list[str] = []
    try:
        for tasks in [array, None] if array else [None]:
            text = job(log=log_of(folder, tasks), array=tasks, after=jobs[0] if jobs else None)
            jobs.append(queue.submit(text, profile.submit_command))
            log = str(folder / "submitted" / f"{jobs[-1]}.log")
            Record(cluster, jobs, log, now(), asdict(place), command=again).write(RunDir(folder))
    except UserError as error:
        if jobs:
            raise UserError(f"{error}; job {jobs[0]} is in the queue, and --resume does the rest") from None
        if is_new and not isinstance(error, queue.MayBeTaken):
            (folder / "sweep.json").unlink()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    say_what(plan, console)
    parts = [f"an array of {array} shares", "what is left then"] if array else [f"{plan.wanted} trials"]
    for part, name in zip(parts, jobs, strict=True):
        print(f"submitted {plan.name}-sweep, {part}, as job {name} on {cluster}")
    print(f"log: {log}")
    print(f"its trials: hpcvision status --runs {shlex.quote(str(folder))}")


def log_of(folder: Path, array: int | None) -> str:
    """Where Slurm writes the log of a job, or of the tasks of an array."""
    return str(folder / "submitted" / ("%A_%a.log" if array else "%j.log"))


def check_here(
    plan: Plan, folder: Path, runs: Path, cluster: str, profile: Profile, place: Placement, array: int | None
) -> None:
    """Raise UserError for whatever can be known on the login node to fail, and for a sweep that is in the queue."""
    check_objective(plan)
    check_share(plan, Share(0, array) if array else None)
    if array and array > profile.max_array_size:
        raise UserError(f"--array={array} is above the {profile.max_array_size} of {cluster}; give fewer")
    slurm.check(profile, place)
    slurm.check_shared(runs, profile)
    if plan.base.data.source != "synthetic":
        slurm.check_shared(data_folder(), profile, "set HPCVISION_DATA to")
    check_path(folder)
    facts_of(plan.config(0) if plan.trials else plan.base)
    record = Record.of(RunDir(folder))
    known = queue.in_queue(record.jobs) if record else {}
    living = [job for job, facts in known.items() if facts.lives]
    if living:
        raise UserError(f"this sweep is in the queue already as job {living[0]}; see hpcvision status, or cancel it")
    limit, needed = profile.max_submitted_jobs, (array or 0) + 1
    own = queue.own_jobs() if limit else 0
    if limit and own + needed > limit:
        raise UserError(
            f"this cluster takes {limit} jobs of one user, you have {own} in the queue and this needs {needed}; "
            "wait for some to end" + (", or give a smaller --array" if array else "")
        )
