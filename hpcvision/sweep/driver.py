"""Runs a plan's trials with Ray Tune on this machine and collects them; the truth is in the run folders."""

import logging
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from hpcvision import data, provenance
from hpcvision.config import CAPS, RunConfig, apply
from hpcvision.errors import UserError
from hpcvision.launch.job import TrainJob, prepare
from hpcvision.models.counting import parameters_of
from hpcvision.report.tables import table
from hpcvision.results.reader import read_curves, read_summary
from hpcvision.results.sweeps import Trial, write_sweep
from hpcvision.rundir import RunDir, read_journal
from hpcvision.sweep.plan import Plan, make_plan
from hpcvision.training.progress import LINE_SECONDS

COLUMNS = 5  # settings that fit into the table of a terminal


def run_sweep(wanted: str, overrides: dict[str, Any], runs: Path, *, trials: int | None, cpus_per_trial: float) -> None:
    """Train all trials that are not finished yet, write sweep.h5, print the table; UserError when a trial failed."""
    plan = make_plan(wanted, overrides, trials=trials)
    folder = (runs / f"{plan.name}-sweep").absolute()
    rundirs = [prepare(apply(plan.base, turned), folder) for _, turned in plan.trials]
    console = Console(highlight=False)
    console.print(
        f"{plan.name}: {len(rundirs)} trials of {plan.base.run_name} on {data_name(plan.base)}, "
        f"objective validation {plan.objective}; "
        f"{plan.removed} candidates were over the cap and are not tried"
    )
    waiting = [index for index, rundir in enumerate(rundirs) if not rundir.is_finished]
    if len(waiting) < len(rundirs):
        console.print(f"{len(rundirs) - len(waiting)} trials are finished already")
    if waiting:
        run_trials(plan, rundirs, waiting, folder, cpus_per_trial=cpus_per_trial)
    rows = collect(plan, rundirs)
    archive = folder / "sweep.h5"
    write_sweep(
        archive,
        name=plan.name,
        base=plan.base.model_dump(mode="json"),
        fingerprint=plan.base.fingerprint,
        caps=CAPS[plan.base.task.kind]._asdict(),
        provenance=provenance.collect(),
        objective=plan.objective,
        trials=rows,
    )
    print_trials(plan, rows, console)
    console.print(f"  {archive}")
    failed = [row for row in rows if row.status != "finished"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(rows)} trials did not finish ({failed[0].label}: see "
            f"{failed[0].archive.parent / 'FAILED.txt'}); the same command tries them again"
        )


def run_trials(plan: Plan, rundirs: list[RunDir], waiting: list[int], folder: Path, *, cpus_per_trial: float) -> None:
    """Let Ray Tune train the waiting trials, as many at once as there are CPUs; one that fails ends no other."""
    os.environ.pop("RAY_ADDRESS", None)  # never join somebody else's cluster
    # Tune's own tables would stand between the lines below.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Otherwise trials run in folders of their own and do not find data/ beside the user.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import torch
    from ray import tune

    # A failed trial is told in one line below, and its traceback is in its folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Short: Ray's sockets live there, and their names may have at most 107 characters.
    temporary = Path(tempfile.mkdtemp(prefix="hv", dir="/tmp"))
    gpus = torch.cuda.device_count()
    cpus = len(os.sched_getaffinity(0))
    trial_cpus = min(cpus_per_trial, cpus)
    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,  # trials exchange a few numbers
        _temp_dir=str(temporary),
    )

    folders = [str(rundir.folder) for rundir in rundirs]

    def trainable(chosen: dict[str, Any]) -> dict[str, float]:
        folder = RunDir(Path(folders[chosen["trial"]]))
        TrainJob(str(folder.folder), read_test=False)()
        return {"objective": objective_of(folder, plan.objective)}

    try:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": trial_cpus, "gpu": min(1.0, gpus * trial_cpus / cpus)}),
            param_space={"trial": tune.grid_search(waiting)},
            tune_config=tune.TuneConfig(metric="objective", mode="min" if plan.objective == "loss" else "max"),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(folder),
                verbose=0,
                callbacks=[narrator(plan, rundirs, waiting)],
                log_to_file=False,
            ),
        ).fit()
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def narrator(plan: Plan, rundirs: list[RunDir], waiting: list[int]) -> Any:
    """A Tune callback that prints a line for every trial that ends, and every 30 seconds how far the others are."""
    from ray import tune

    class Narrator(tune.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.done = 0
            self.last_line = time.monotonic()

        def say(self, line: str) -> None:
            self.last_line = time.monotonic()
            print(line, file=sys.stderr, flush=True)

        def ended(self, trial: Any, word: str) -> None:
            self.done += 1
            label, turned = plan.trials[trial.config["trial"]]
            score = trial.last_result.get("objective", math.nan) if trial.last_result else math.nan
            settings = "  ".join(f"{key}={value}" for key, value in turned.items())
            self.say(f"{self.done}/{len(waiting)}  {label} {word}  {plan.objective} {score:.4f}  {settings}")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
            self.ended(trial, "finished")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
            self.ended(trial, "FAILED")

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:  # noqa: ARG002
            if time.monotonic() - self.last_line < LINE_SECONDS:
                return
            running = [trial.config["trial"] for trial in trials if trial.status == "RUNNING"]
            far = (f"{plan.trials[index][0]} at step {last_step(rundirs[index]):,}" for index in running)
            self.say(f"{self.done}/{len(waiting)}  running: {', '.join(far)}")

    return Narrator()


def last_step(rundir: RunDir) -> int:
    """The last step that the journal tells of."""
    return max((event["step"] for event in read_journal(rundir.log) if event["event"] == "train"), default=0)


def objective_of(rundir: RunDir, objective: str) -> float:
    """The validation score of the headline weights at the last step."""
    headline = read_summary(rundir.results).config["ema"]["headline"]
    _, evaluate = read_curves(rundir.results)
    rows = evaluate[(evaluate["split"] == "validation") & (evaluate["weights"] == headline)]
    return float(rows[objective].iloc[-1])


def collect(plan: Plan, rundirs: list[RunDir]) -> list[Trial]:
    """What the run folders say about every trial, in the order of the plan."""
    rows = []
    for (label, turned), rundir in zip(plan.trials, rundirs, strict=True):
        config = apply(plan.base, turned)
        finished = rundir.is_finished
        status = "finished" if finished else "failed" if rundir.failure.exists() else "unfinished"
        score = objective_of(rundir, plan.objective) if finished else math.nan
        parameters = parameters_of(config.model)
        rows.append(Trial(label, config.fingerprint, status, parameters, score, turned, rundir.results))
    return rows


def data_name(config: RunConfig) -> str:
    """The name of the data for people."""
    return data.describe(config.data, image_size=config.model.image_size, num_classes=config.model.num_classes)


def print_trials(plan: Plan, rows: list[Trial], console: Console) -> None:
    """All trials, the best first."""
    keys = list(dict.fromkeys(key for row in rows for key in row.overrides))
    if len(keys) > COLUMNS:  # named variants that change much; their names say it
        keys = []
    shown = table("trial", "status", "parameters", plan.objective, *keys, numbers=("parameters", plan.objective))
    sign = 1 if plan.objective == "loss" else -1
    for row in sorted(rows, key=lambda row: (math.isnan(row.objective), sign * row.objective)):
        values = [
            f"{row.overrides.get(key, ''):.4g}"
            if isinstance(row.overrides.get(key), float)
            else str(row.overrides.get(key, ""))
            for key in keys
        ]
        shown.add_row(row.label, row.status, f"{row.parameters:,}", f"{row.objective:.4f}", *values)
    console.print(shown)
