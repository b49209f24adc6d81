"""Hands a sweep's trials to Ray Tune, and tells a person how far they are."""

import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpcvision.launch.job import prepare
from hpcvision.place import Place
from hpcvision.sweep.collect import Row, Sweep
from hpcvision.sweep.driver import Resources
from hpcvision.sweep.private_ray import PrivateRay
from hpcvision.sweep.rungs import RecordedAsha
from hpcvision.sweep.stopping import Stopping
from hpcvision.sweep.trial import TrialRun, last_step
from hpcvision.training.progress import LINE_SECONDS, clock


def tune_trials(
    sweep: Sweep,
    waiting: list[Row],
    more: int,
    resources: Resources,
    stopping: Stopping,
    ray: PrivateRay,
    *,
    read_test: bool,
    last_try: bool,
) -> list[Row]:
    """Train the waiting rows, and `more` that an adaptive search proposes; as many at once as there is room for.

    Gives those that a lost node has taken with it, unless it is their last try.
    """
    folder, plan = ray.start(), sweep.plan
    for left in sweep.folder.glob(".tune-*") if ray.meeting else ():  # of a driver that was killed
        shutil.rmtree(left, ignore_errors=True)
    feed = Feed(sweep, waiting, more, resources, stopping, read_test=read_test)
    scheduler = None
    if plan.scheduler and not sweep.seeded:
        steps = max(row.config.train.steps for row in sweep.rows) if sweep.rows else plan.base.train.steps
        scheduler = RecordedAsha(sweep.rungs, plan.scheduler, metric="objective", mode=plan.mode, steps=steps)
    with (
        Narrator(sweep, feed, stopping, several_nodes=bool(ray.meeting), last_try=last_try) as narrator,
        # What Tune writes, which nobody reads: with several nodes where all can see it.
        tempfile.TemporaryDirectory(prefix=".tune-", dir=sweep.folder if ray.meeting else folder) as storage,
    ):
        tune.Tuner(
            tune.with_resources(TrialRun, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
            tune_config=tune.TuneConfig(
                search_alg=feed,
                scheduler=scheduler,
                num_samples=len(waiting) + more,
                reuse_actors=True,  # the next trial finds torch imported and the images in memory
                trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
                **({} if scheduler else {"metric": "objective", "mode": plan.mode}),
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=storage, verbose=0, callbacks=[narrator.callback()], log_to_file=False
            ),
        ).fit()
    return narrator.lost


class Feed(Searcher):  # type: ignore[misc]
    """Gives Tune one row after the other, then what an adaptive search proposes, until the sweep is asked to stop."""

    def __init__(
        self,
        sweep: Sweep,
        waiting: list[Row],
        more: int,
        resources: Resources,
        stopping: Stopping,
        *,
        read_test: bool,
    ) -> None:
        super().__init__(metric="objective", mode=sweep.plan.mode)
        self.sweep, self.waiting, self.more, self.stopping = sweep, list(waiting), more, stopping
        self.resources, self.read_test = resources, read_test
        self.total = len(waiting) + more
        self.rows: dict[str, Row] = {}
        self.proposed: set[str] = set()
        self.search = None
        if more:
            from hpcvision.sweep.adaptive import Proposals

            self.search = Proposals(sweep)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Tune's space is empty: the points come from the plan."""
        del metric, mode, config, spec
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's plain values, or the word for the end."""
        if self.stopping.asked:
            return Searcher.FINISHED
        if self.waiting:
            row = self.waiting.pop(0)
        elif self.more and self.search:
            self.more -= 1
            self.proposed.add(trial_id)
            overrides, point = self.search.propose(trial_id)
            row = self.sweep.propose(overrides, point)
            prepare(row.config, self.sweep.folder)
        else:
            return Searcher.FINISHED
        self.rows[trial_id] = row
        return self.settings(row)

    def settings(self, row: Row) -> dict[str, Any]:
        """What the process of a trial has to know."""
        plan = self.sweep.plan
        compared = plan.scheduler is not None and row.number == 0 and not self.read_test
        return {
            "trial": row.trial,
            "folder": str(row.rundir.folder),
            "objective": plan.objective,
            "larger_is_better": plan.larger_is_better,
            "rungs": plan.rungs(row.config) if compared else [],
            "reported": self.sweep.reported(row),
            "read_test": self.read_test,
            "stop_file": str(self.stopping.file),
            "threads": max(1, int(self.resources.cpus_per_trial)),
            "job_id": Place.from_environment().job_id,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the adaptive search how a trial of its own has ended."""
        if self.search and trial_id in self.proposed:
            self.search.learn(trial_id, result, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials are written down in the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Narrator:
    """A bar on a terminal, a line every 30 seconds in a log, and a line for every trial that ends."""

    def __init__(self, sweep: Sweep, feed: Feed, stopping: Stopping, *, several_nodes: bool, last_try: bool) -> None:
        self.sweep, self.feed, self.stopping = sweep, feed, stopping
        self.several_nodes, self.last_try = several_nodes, last_try
        self.done = self.failed = self.halted = 0
        self.lost: list[Row] = []
        self.best = math.nan
        self.first_made: tuple[float, float] | None = None
        """When the first line was said, and the trials, with parts of them, that had been made by then."""
        self.started = self.last_line = time.monotonic()
        console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=console)
            self.task = self.bar.add_task(sweep.plan.name, total=feed.total, numbers="")

    def __enter__(self) -> "Narrator":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.bar:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def ended(self, row: Row, result: dict[str, Any], word: str, reason: str) -> None:
        """A trial has ended."""
        if word == "stopped":  # asked to; it goes on with --resume
            self.stopping.ask()
            return
        self.done += 1
        self.failed += word == "FAILED"
        self.halted += word.startswith("stopped")
        plan, value = self.sweep.plan, result.get("objective", math.nan)
        if word == "finished" and not value * (1 if plan.larger_is_better else -1) <= self.best * (
            1 if plan.larger_is_better else -1
        ):
            self.best = value
        settings = "  ".join(f"{key}={in_a_line(value)}" for key, value in row.overrides.items())
        tail = f": {reason}" if reason else ""
        score = f"  {plan.objective} {value:.4f}" if math.isfinite(value) else ""
        self.say(f"{self.done}/{self.feed.total}  {row.label} {word}{tail}{score}  {settings}")

    def why(self, row: Row, reason: str) -> str:
        """Why a trial has failed, as the table says it; `reason` where its own process left no word."""
        if not row.rundir.failure.exists():
            row.rundir.failure.write_text(f"rank 0: {reason}\n")
        return self.sweep.reason(row)

    def look(self, running: list[Row]) -> None:
        """Show how far everything is, and mind the time."""
        self.stopping.look()
        numbers = f"{len(running)} running, {self.halted} stopped, {self.failed} failed"
        if not math.isnan(self.best):
            numbers += f", best {self.sweep.plan.objective} {self.best:.4f}"
        if self.bar:
            self.bar.update(self.task, completed=self.done, numbers=numbers)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            steps = [last_step(row.rundir) for row in running]
            made = self.done + sum(step / row.config.train.steps for step, row in zip(steps, running, strict=True))
            before, self.first_made = self.first_made, self.first_made or (self.last_line, made)
            left = ""
            if before and made > before[1]:
                pace = (self.last_line - before[0]) / (made - before[1])
                left = f"; about {clock(pace * (self.feed.total - made))} left"
            far = ", ".join(f"{row.label} at step {step:,}" for row, step in zip(running, steps, strict=True))
            self.say(f"{self.done}/{self.feed.total}  {numbers}{left}  ({far})")

    def callback(self) -> Any:
        """What Tune calls."""
        narrator = self

        class Told(tune.Callback):  # type: ignore[misc]
            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
                result, row = trial.last_result or {}, narrator.feed.rows[trial.trial_id]
                ended = result.get("ended", "failed")
                reason = narrator.why(row, result.get("reason", "")) if ended == "failed" else ""
                word = {"rung": "stopped at a rung", "failed": "FAILED"}.get(ended, ended)
                if word == "FAILED" and row.rundir.has_diverged:
                    word = "diverged"
                if word == "finished" and narrator.feed.read_test:
                    word = "has read the test images"
                narrator.ended(row, result, word, reason)

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
                row = narrator.feed.rows[trial.trial_id]
                reason = why_it_died(trial, several_nodes=narrator.several_nodes)
                if reason == LOST and not narrator.last_try:
                    narrator.lost.append(row)
                    narrator.say(f"{row.label} is tried again: {reason}")
                    return
                narrator.ended(row, {}, "FAILED", narrator.why(row, reason))

            def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:  # noqa: ARG002
                narrator.look([narrator.feed.rows[trial.trial_id] for trial in trials if trial.status == "RUNNING"])

        return Told()


LOST = "its node is lost"


def why_it_died(trial: Any, *, several_nodes: bool) -> str:
    """A line about a process that ended without a word of its own."""
    text = Path(trial.error_file).read_text() if trial.error_file else ""  # Tune's own getters look where it is not
    # "Unavailable" is what Ray says until it has noticed that a node is gone, after 15 s and more.
    if several_nodes and ("node has died" in text or "is unavailable" in text):
        return LOST
    if "OutOfMemory" in text or "OOM" in text:
        return "its process ran out of memory and was killed"
    return "its process was killed, perhaps for want of memory (the kernel's log, dmesg, says so)"


def in_a_line(value: Any) -> str:
    """A setting, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
