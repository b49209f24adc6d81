"""A sweep as a Slurm job: over several nodes, or as an array of shares with a job after it that does the rest."""

import shlex
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hpcvision.errors import UserError
from hpcvision.launch import queue, slurm
from hpcvision.launch.batch import Placement, check_path, script
from hpcvision.launch.checked import facts_of
from hpcvision.launch.cluster import Record
from hpcvision.launch.profile import Profile
from hpcvision.report import tables
from hpcvision.rundir import RunDir, data_folder, write_json
from hpcvision.sweep.driver import Share, check_folder, check_share, folder_of, say_what
from hpcvision.sweep.plan import check_objective, make_plan
from hpcvision.sweep.tables import print_planned


def submit_sweep(
    wanted: str,
    words: list[str],
    overrides: dict[str, Any],
    runs: Path,
    *,
    cluster: str,
    profile: Profile,
    place: Placement,
    trials: int | None = None,
    array: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Find on the login node what is wrong, then hand the sweep to Slurm and say where its log is.

    words: what to write after `hpcvision sweep` on the nodes. A sweep that is in the queue is not submitted again.
    """
    plan, console = make_plan(wanted, overrides, trials=trials), tables.console()
    folder = folder_of(plan, runs)
    check_objective(plan)
    check_share(plan, Share(0, array) if array else None)
    if array and array > profile.max_array_size:
        raise UserError(f"--array={array} is above the {profile.max_array_size} of {cluster}; give fewer")
    slurm.check_place(profile, place)
    slurm.check_account(profile)
    slurm.check_shared(runs, profile)
    if plan.base.data.source != "synthetic":
        slurm.check_shared(data_folder(), profile, "set HPCVISION_DATA to")
    check_path(folder)
    facts_of(plan.base if not plan.trials else plan.config(0), runs)
    record = Record.of(RunDir(folder))
    known = queue.in_queue(record.jobs) if record else {}
    living = [job for job, facts in known.items() if facts.lives]
    if living:
        raise UserError(f"this sweep is in the queue already as job {living[0]}; see squeue --me, or scancel it")
    command = [*shlex.split(profile.python or sys.executable), "-m", "hpcvision", "sweep", *words]
    logs = folder / "submitted"
    job = partial(script, f"{plan.name}-sweep", profile, place, command)
    if dry_run:
        say_what(plan, console)
        print_planned(plan, console)
        log = str(logs / ("%A_%a.log" if array else "%j.log"))
        text = job(log=log, array=array)
        print(text)
        print(f"# {queue.test_only(text, profile.submit_command)}")
        if array:
            print("# a job of one node after it would do what is left, and write sweep.h5")
        print("# nothing was submitted")
        return
    own = queue.own_jobs() if profile.max_submitted_jobs else 0
    if profile.max_submitted_jobs and own + (array or 0) + 1 > profile.max_submitted_jobs:
        raise UserError(
            f"this cluster takes {profile.max_submitted_jobs} jobs of one user, you have {own} in the queue and this "
            f"needs {(array or 0) + 1}; wait for some to end" + (", or give a smaller --array" if array else "")
        )
    is_new = not (folder / "sweep.json").exists()
    check_folder(plan, folder, resume=resume)
    logs.mkdir(exist_ok=True)
    # Ctrl-C and a lost connection wait until it is written down which jobs there are.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
    try:
        jobs: list[str] = []
        for tasks in [array, None] if array else [None]:
            log = str(logs / ("%A_%a.log" if tasks else "%j.log"))
            text = job(log=log, array=tasks, after=jobs[0] if jobs else None)
            try:
                jobs.append(queue.submit(text, profile.submit_command))
            except UserError as error:
                if jobs:
                    raise UserError(f"{error}; job {jobs[0]} is in the queue, and --resume does the rest") from None
                if is_new:
                    (folder / "sweep.json").unlink()
                raise
            log = str(logs / f"{jobs[-1]}.log")
            write_json(RunDir(folder).job, asdict(Record(cluster, jobs, log, slurm.now(), asdict(place))))
            if tasks == array:
                say_what(plan, console)
            what = f"an array of {tasks} shares" if tasks else "what is left then" if array else f"{plan.wanted} trials"
            print(f"submitted {plan.name}-sweep, {what}, as job {jobs[-1]} on {cluster}")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    print(f"log: {log}")
    print(f"its trials: hpcvision status --runs {shlex.quote(str(folder))}")
