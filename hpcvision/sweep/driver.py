"""Runs a plan's trials with Ray Tune and collects them; the truth is in the run folders, so any stop can be resumed."""

import contextlib
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from hpcvision import data
from hpcvision.errors import UserError
from hpcvision.launch.job import prepare
from hpcvision.launch.space import bytes_needed, megabytes
from hpcvision.models.counting import stored_numbers_of
from hpcvision.results.sweeps import sweep_is_finished
from hpcvision.rundir import write_json
from hpcvision.stopping import INTERRUPTED, StopRequest
from hpcvision.sweep.collect import Sweep, write_archive
from hpcvision.sweep.plan import Plan, make_plan
from hpcvision.sweep.private_ray import PrivateRay
from hpcvision.sweep.tables import print_planned, print_trials


@dataclass(frozen=True)
class Resources:
    """What of this machine a sweep may use."""

    cpus: int
    gpus: int
    cpus_per_trial: float
    gpus_per_trial: float


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
) -> int:
    """Train all trials that have not ended yet, the best with further seeds, write sweep.h5, print the table.

    Gives the exit code: 130 when it was stopped; raises UserError when a trial failed.
    """
    plan = make_plan(wanted, overrides, trials=trials)
    console = Console(highlight=False)
    say_what(plan, console)
    if dry_run:
        print_planned(plan, console)
        return 0
    folder = (runs / f"{plan.name}-sweep").absolute()
    resources = resources_here(plan, cpus_per_trial, per_gpu)
    check_folder(plan, folder, resume=resume)
    sweep = Sweep(plan, folder)
    sweep.add_known_trials()
    check_room(sweep)
    for row in sweep.rows:
        prepare(row.config, folder)
    ended = len([row for row in sweep.rows if sweep.has_ended(row)])
    if ended:
        console.print(f"{ended} of {plan.wanted} trials have ended already")
    with Stopping(folder) as stopping, PrivateRay(cpus=resources.cpus, gpus=resources.gpus) as ray:
        train(sweep, resources, stopping, ray)
        if not stopping.asked:
            for row in sweep.add_seeds():
                prepare(row.config, folder)
            train(sweep, resources, stopping, ray)
        if not stopping.asked and sweep.choose_winner():
            train(sweep, resources, stopping, ray, read_test=True)
    archive = write_archive(sweep)
    print_trials(sweep, console)
    console.print(f"  {archive}", soft_wrap=True)
    if stopping.asked:
        console.print(f"stopped; `hpcvision sweep {wanted} --resume` goes on from here", soft_wrap=True)
        return INTERRUPTED
    failed = [row for row in sweep.rows if sweep.status(row) in ("failed", "unfinished")]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(sweep.rows)} trials did not finish ({failed[0].label}: {sweep.reason(failed[0])}; "
            f"see {failed[0].rundir.failure}); the same command with --resume tries them again"
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


def resources_here(plan: Plan, cpus_per_trial: float, per_gpu: int | None) -> Resources:
    """How trials share this machine; UserError for more trials on a GPU than have room there."""
    cpus, gpus = len(os.sched_getaffinity(0)), 0  # of the allocation, not of the machine
    if Path("/proc/driver/nvidia").exists():  # torch takes more than a second, which a sweep on CPUs need not wait for
        import torch

        gpus = torch.cuda.device_count()
    if not gpus:
        return Resources(cpus, 0, min(cpus_per_trial, cpus), 0.0)
    per_gpu = per_gpu or max(1, min(8, int(cpus / cpus_per_trial / gpus)))
    from hpcvision.sweep.room import check_gpu_room

    check_gpu_room(plan.base, per_gpu)
    return Resources(cpus, gpus, min(cpus_per_trial, cpus / gpus / per_gpu), 1 / per_gpu)


def check_folder(plan: Plan, folder: Path, *, resume: bool) -> None:
    """Raise UserError when the folder holds another sweep, or a begun one that is not to be resumed."""
    path, here = folder / "sweep.json", plan.identity()
    try:
        there = json.loads(path.read_text())
    except FileNotFoundError:
        there = None
        if resume:
            raise UserError(f"{folder} holds no sweep to resume; leave out --resume") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); choose another --runs") from None
    here = json.loads(json.dumps(here))
    if there is not None and there != here:
        keys = ", ".join(key for key in here if there.get(key) != here[key])
        raise UserError(f"{folder} is of another sweep (it differs in {keys}); choose another --runs")
    if there is not None and not resume and not sweep_is_finished(folder / "sweep.h5"):
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


class Stopping:
    """Asks all trials to save and stop, wherever they are, when the sweep is asked to."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "stop"
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        self.file.unlink(missing_ok=True)
        for number in StopRequest.SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.file.unlink(missing_ok=True)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask()

    def ask(self) -> None:
        """Stop."""
        self.asked = True
        with contextlib.suppress(OSError):
            self.file.touch()


def train(sweep: Sweep, resources: Resources, stopping: Stopping, ray: PrivateRay, *, read_test: bool = False) -> None:
    """Let Ray Tune train the rows that have not ended; with read_test those of the winner are scored on the test split.

    A trial that fails ends no other.
    """
    if read_test:
        waiting = [row for row in sweep.rows if row.trial == sweep.winner and not sweep.has_tested(row)]
    else:
        # One that has failed is not tried again in the same sweep.
        waiting = [row for row in sweep.rows if bool(row.number) == sweep.seeded and not sweep.has_ended(row)]
    more = 0 if sweep.seeded else sweep.plan.wanted - len(sweep.plan.trials)
    if waiting or more:
        from hpcvision.sweep.tuning import tune_trials

        tune_trials(sweep, waiting, more, resources, stopping, ray.start(), read_test=read_test)
