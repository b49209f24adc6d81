"""Runs a plan's trials with Ray Tune and collects them; the truth is in the run folders, so any stop can be resumed."""

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hpcvision import data
from hpcvision.errors import FolderInUse, UserError
from hpcvision.launch.job import AGAIN_FILE, come_back, leave_word, prepare
from hpcvision.launch.lock import only_one
from hpcvision.launch.space import bytes_needed, megabytes
from hpcvision.launch.submit import gpus_here
from hpcvision.models.counting import stored_numbers_of
from hpcvision.place import Place
from hpcvision.report import tables
from hpcvision.results.sweeps import sweep_is_finished, trials_in
from hpcvision.rundir import RunDir, runs_folder, write_json
from hpcvision.stopping import INTERRUPTED
from hpcvision.sweep.collect import Sweep, write_archive
from hpcvision.sweep.plan import Plan, check_objective, make_plan
from hpcvision.sweep.private_ray import PrivateRay, lend_node, meeting_of
from hpcvision.sweep.stopping import Stopping
from hpcvision.sweep.tables import print_planned, print_trials

MOST_TRIES = 4  # of a trial whose node was lost; after that it is told as failed


@dataclass(frozen=True)
class Resources:
    """What of this machine a sweep may use."""

    cpus: int
    gpus: int
    cpus_per_trial: float
    gpus_per_trial: float


@dataclass(frozen=True)
class Share:
    """The trials of one task of a Slurm array: every `of`-th one from `number` on, counted from 0."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @staticmethod
    def read(words: str) -> "Share":
        """From `3/8`; raises UserError for anything else."""
        number, slash, of = words.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            raise UserError(f"--share={words!r}: write for example 0/8, the first of eight, up to 7/8")
        return Share(int(number), int(of))


def run_sweep(
    wanted: str,
    overrides: dict[str, Any],
    runs: Path,
    *,
    trials: int | None = None,
    cpus_per_trial: float = 1.0,
    per_gpu: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    share: Share | None = None,
) -> int:
    """Train all trials that have not ended yet, the best with further seeds, write sweep.h5, print the table.

    As a task of srun it goes on with what is there; the other tasks, one on each node, lend their nodes to the first.
    With a share it trains those trials and no more; the sweep without a share then does the rest.

    Gives the exit code: 130 when it was stopped, but 0 as a task of srun; raises UserError when a trial failed.
    """
    place = Place.from_environment()
    if share and place.world_size > 1:
        raise UserError(f"a share has one node, Slurm started {place.world_size} tasks; leave out --nodes")
    if place.world_size > place.node_count:
        raise UserError(f"a sweep is one task on each node, Slurm started {place.world_size} on {place.node_count}")
    plan, console = make_plan(wanted, overrides, trials=trials), tables.console()
    folder = folder_of(plan, runs)
    if dry_run:
        say_what(plan, console)
        print_planned(plan, console)
        return 0
    resources = resources_here(plan, cpus_per_trial, per_gpu, place)
    meeting = meeting_of(folder, place) if place.world_size > 1 else None
    if meeting and place.rank:
        lend_node(meeting, cpus=resources.cpus, gpus=resources.gpus)
        return 0
    say_what(plan, console)
    check_objective(plan)
    check_share(plan, share)
    check_folder(plan, folder, resume=None if place.is_slurm_task else resume)
    sweep = Sweep(plan, folder)
    with (
        held(folder, share),
        Stopping(
            folder / ("stop" if share is None else f"stop-{share.number}"), deaf_afterwards=place.is_slurm_task
        ) as stopping,
        PrivateRay(cpus=resources.cpus, gpus=resources.gpus, meeting=meeting) as ray,
    ):
        sweep.add_known_trials()
        if share:
            sweep.rows = sweep.rows[share.number :: share.of]
        check_room(sweep)
        begin = [row for row in sweep.rows if not sweep.has_ended(row)]
        for row in begin:
            prepare(row.config, folder)
        ended = len(sweep.rows) - len(begin)
        if ended:
            console.print(f"{ended} of {len(sweep.rows) if share else plan.wanted} trials have ended already")
        train(sweep, resources, stopping, ray)
        if not stopping.asked and not share:
            for row in sweep.add_seeds():
                if not sweep.has_ended(row):
                    prepare(row.config, folder)
            train(sweep, resources, stopping, ray)
        if not stopping.asked and not share and sweep.choose_winner():
            train(sweep, resources, stopping, ray, read_test=True)
        stopped = stopping.asked  # one that comes later is not heard: nothing but sweep.h5 is left to write
        if stopped:
            leave_word()  # at once: what is left of the time limit may be short
        archive = None if share or (stopped and place.is_slurm_task) else write_archive(sweep)
    if not stopped or not place.is_slurm_task:
        print_trials(sweep, console)
    if archive:
        print(f"  {archive}")
    if stopped and place.is_slurm_task:
        again = "when its job runs again" if AGAIN_FILE in os.environ else f"with hpcvision resume {folder.name}"
        print(f"stopped; the sweep goes on from here {again}")
        return 0
    if stopped:
        options = {
            "--cpus-per-trial": None if cpus_per_trial == 1 else cpus_per_trial,
            "--per-gpu": per_gpu,
            "--share": share,
            "--runs": None if runs == runs_folder(None) else runs,
        }
        given = [word for option in options.items() if option[1] is not None for word in map(str, option)]
        words = ["hpcvision", "sweep", wanted, *shlex.split(plan.given), *given, "--resume"]
        print(f"stopped; `{shlex.join(words)}` goes on from here")
        return INTERRUPTED
    untested = [row for row in sweep.rows if row.trial == sweep.winner and not sweep.has_tested(row)]
    failed = [row for row in sweep.rows if sweep.status(row) in ("failed", "unfinished") or row in untested]
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(sweep.rows)} trials did not finish ({first.label}: "
            f"{sweep.reason(first) or 'its test images were not read'}; see {first.rundir.failure}); the same command "
            "with --resume tries them again"
        )
    return 0


def say_what(plan: Plan, console: Console) -> None:
    """What will be searched, and what the caps took away."""
    base = plan.base
    name = data.describe(base.data, image_size=base.model.image_size, num_classes=base.model.num_classes)
    console.print(
        f"{plan.name}: {plan.wanted} trials of {base.run_name} on {name}, objective validation {plan.objective}; "
        f"the caps removed {plan.removed} of {plan.combinations} combinations and {1 - plan.share:.1%} of the space"
        if plan.surfaces
        else f"{plan.name}: {plan.wanted} variants of {base.run_name} on {name}, objective validation {plan.objective}",
        soft_wrap=True,
    )
    if plan.asked > plan.wanted:
        console.print(f"{plan.asked} trials were asked for; the space has no more than these below the caps")


def folder_of(plan: Plan, runs: Path) -> Path:
    """Where the sweep's runs and its archive are."""
    return (runs / f"{plan.name}-sweep").absolute()


@contextlib.contextmanager
def held(folder: Path, share: Share | None) -> Iterator[None]:
    """Nobody else drives this sweep meanwhile, but other shares of it may; raises FolderInUse."""
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(only_one(RunDir(folder), shared=share is not None))
            if share:
                stack.enter_context(only_one(RunDir(folder), name=f"lock-{share.number}"))
            yield
    except FolderInUse:
        come_back()
        raise


def check_share(plan: Plan, share: Share | None) -> None:
    """Raise UserError for a share of a search that learns from all trials, or for one of more tasks than trials."""
    if share and plan.search == "optuna":
        raise UserError("SEARCH='optuna' learns from every trial, so it cannot be shared out; use --nodes for more")
    if share and share.of > len(plan.trials):
        raise UserError(f"{share.of} tasks for {len(plan.trials)} trials; give at most as many tasks as trials")


def resources_here(plan: Plan, cpus_per_trial: float, per_gpu: int | None, place: Place) -> Resources:
    """How trials share this machine; UserError for more trials on a GPU than have room there."""
    cpus, gpus = len(os.sched_getaffinity(0)), gpus_here()  # of the allocation, not of the machine
    if place.is_slurm_task:  # where Slurm binds no task to its cores
        cpus = min(cpus, int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))
    if not gpus:
        return Resources(cpus, 0, min(cpus_per_trial, cpus), 0.0)
    per_gpu = per_gpu or max(1, min(8, int(cpus / cpus_per_trial / gpus)))
    from hpcvision.sweep.room import check_gpu_room

    check_gpu_room(plan.base, per_gpu)
    return Resources(cpus, gpus, min(cpus_per_trial, cpus / gpus / per_gpu), 1 / per_gpu)


def check_folder(plan: Plan, folder: Path, *, resume: bool | None) -> None:
    """Raise UserError when the folder holds another sweep, or a begun one that is not to be resumed (None: either)."""
    path, here = folder / "sweep.json", plan.identity()
    try:
        there = json.loads(path.read_text())
    except FileNotFoundError:
        there = None
        if resume:
            raise UserError(f"{folder} holds no sweep to resume; leave out --resume") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); choose another --runs") from None
    # As text, for the order of a space is the order in which its values are drawn.
    known = here if there is None else there
    differing = [key for key in here if here[key] != [] and json.dumps(known.get(key)) != json.dumps(here[key])]
    if differing:
        raise UserError(
            f"{folder} is of another sweep (it differs in {', '.join(differing)}); put the sweep's file back as it "
            "was, or choose another --runs"
        )
    before = trials_in(folder / "sweep.h5")
    if before > plan.wanted:
        raise UserError(
            f"{folder} has {before} trials, and sweep.h5 would have {plan.wanted}; give --trials {before} or more, or "
            "choose another --runs"
        )
    if there is not None and resume is False and not sweep_is_finished(folder / "sweep.h5"):
        raise UserError(f"{folder} holds this sweep, begun before; go on with --resume, or choose another --runs")
    if there is None:
        write_json(path, here)


def check_room(sweep: Sweep) -> None:
    """Raise UserError when the disk cannot hold all trials that have not begun."""
    new = [row for row in sweep.rows if not row.rundir.folder.exists()]
    needed = sum(bytes_needed(row.config, stored_numbers_of(row.config.model))[0] for row in new)
    free = shutil.disk_usage(sweep.folder).free
    if needed > free:
        raise UserError(
            f"{len(new)} trials need about {megabytes(needed)} MB in {sweep.folder}, but the disk has "
            f"{megabytes(free)} MB free; make room, choose another --runs or fewer --trials"
        )


def train(sweep: Sweep, resources: Resources, stopping: Stopping, ray: PrivateRay, *, read_test: bool = False) -> None:
    """Let Ray Tune train the rows that have not ended; with read_test those of the winner are scored on the test split.

    A trial that fails ends no other, and one whose node is lost is tried again on those that are left.
    """
    if read_test:
        waiting = [row for row in sweep.rows if row.trial == sweep.winner and not sweep.has_tested(row)]
    else:
        # One that has failed is not tried again in the same sweep.
        waiting = [row for row in sweep.rows if bool(row.number) == sweep.seeded and not sweep.has_ended(row)]
    more = 0 if sweep.seeded else max(0, sweep.plan.wanted - len(sweep.plan.trials))
    for attempt in range(MOST_TRIES):
        if not (waiting or more) or stopping.asked:
            break
        from hpcvision.sweep.tuning import tune_trials

        last_try = attempt == MOST_TRIES - 1
        waiting = tune_trials(sweep, waiting, more, resources, stopping, ray, read_test=read_test, last_try=last_try)
        more = 0
