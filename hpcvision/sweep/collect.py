"""What a sweep's folder says of its trials: how each ended, which are the best, and the one file of all."""

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcvision import provenance
from hpcvision.config import CAPS, RunConfig, apply, flatten
from hpcvision.models.counting import parameters_of
from hpcvision.results.reader import read_summary
from hpcvision.results.sweeps import Trial, write_sweep
from hpcvision.rundir import RunDir, read_journal
from hpcvision.sweep.plan import Plan, Planned
from hpcvision.sweep.rungs import read_rungs
from hpcvision.sweep.trial import known_distance, last_step, objective_of

ENDED = ("finished", "stopped", "diverged")


@dataclass(frozen=True)
class Row:
    """One run of a sweep: a trial, or one of the best again with another seed."""

    trial: int
    """Index in the plan."""
    number: int
    """0 for the trial itself, 1, 2, ... for the further seeds."""
    label: str
    overrides: dict[str, Any]
    config: RunConfig
    rundir: RunDir


class Sweep:
    """The rows of a plan and their folders. Everything it tells is read from those folders."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.rows: list[Row] = []
        self.seeded = False
        self.winner: int | None = None
        """Index of the trial with the best mean over its seeds, once that is known."""
        self._read: tuple[int, list[dict[str, Any]]] = (0, [])
        self._objectives: dict[str, float] = {}

    @property
    def rungs(self) -> Path:
        """Decisions of the scheduler, in their order."""
        return self.folder / "rungs.jsonl"

    @property
    def points(self) -> Path:
        """Trials of an adaptive search, in the order in which they were proposed."""
        return self.folder / "trials.jsonl"

    def add_known_trials(self) -> None:
        """All trials that are drawn."""
        if self.plan.search == "optuna":
            self.plan.trials = [
                Planned(event["label"], event["overrides"], event["point"]) for event in read_journal(self.points)
            ]
        for index in range(len(self.plan.trials)):
            self.rows.append(self.row(index, 0))

    def propose(self, overrides: dict[str, Any], point: dict[str, Any]) -> Row:
        """One more trial, written down before it is trained."""
        planned = Planned(f"trial {len(self.plan.trials) + 1}", overrides, point)
        with self.points.open("a") as file:
            file.write(json.dumps({"event": "trial"} | asdict(planned)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.plan.trials.append(planned)
        self.rows.append(self.row(len(self.plan.trials) - 1, 0))
        return self.rows[-1]

    def row(self, trial: int, number: int) -> Row:
        """A trial with its own seed, or with another."""
        planned, overrides = self.plan.trials[trial], dict(self.plan.trials[trial].overrides)
        if number:
            overrides["seed"] = self.plan.config(trial).seed + number
        config = apply(self.plan.base, overrides)
        label = f"{planned.label}, seed {config.seed}" if number else planned.label
        return Row(trial, number, label, overrides, config, RunDir(self.folder / config.folder_name))

    def decisions(self) -> list[dict[str, Any]]:
        """All decisions of the scheduler so far."""
        size = self.rungs.stat().st_size if self.rungs.exists() else 0
        if size != self._read[0]:  # it only grows; every row asks for it
            self._read = size, read_rungs(self.rungs)
        return self._read[1]

    def stopped(self) -> dict[str, dict[str, Any]]:
        """The last decision about every trial that the scheduler has stopped, by the name of its folder."""
        return {record["folder"]: record for record in self.decisions() if record["decision"] == "stop"}

    def reported(self, row: Row) -> int:
        """The last step at which a trial was compared with others, or 0."""
        name = row.rundir.folder.name
        return max((record["step"] for record in self.decisions() if record["folder"] == name), default=0)

    def has_ended(self, row: Row) -> bool:
        """True for a run that is not to be trained any further."""
        return self.status(row) in ENDED

    def has_tested(self, row: Row) -> bool:
        """True for a run with all scores of the test split."""
        if not (row.rundir.is_finished and row.rundir.has_read_test):
            return False
        return self.plan.objective != "frechet" or not math.isnan(known_distance(row.rundir, "test"))

    def status(self, row: Row) -> str:
        """finished, stopped (by the scheduler), diverged, failed or unfinished."""
        if self.finished_objective(row) is not None:
            return "finished"
        if row.number == 0 and row.rundir.folder.name in self.stopped():
            return "stopped"
        if row.rundir.has_diverged:
            return "diverged"
        return "failed" if row.rundir.failure.exists() else "unfinished"

    def reason(self, row: Row) -> str:
        """Why a trial failed, or at which step it was stopped; nothing for one that finished."""
        match self.status(row):
            case "failed" | "diverged":
                lines = row.rundir.failure.read_text().strip().splitlines() or [""]
                last = lines[-1] if len(lines) > 1 else lines[0].partition(": ")[2]  # a traceback's last line says it
                # "DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "MemoryError".
                lacks_memory = re.search("out of memory|allocate memory|allocator|memoryerror", last.lower())
                return f"out of memory: {last.strip()}" if lacks_memory else last.strip()
            case "stopped":
                return f"among the others at step {self.stopped()[row.rundir.folder.name]['step']:,}"
            case _:
                return ""

    def objective(self, row: Row) -> float:
        """Validation score of the headline weights at the last step or the rung that stopped it, else NaN."""
        value = self.finished_objective(row)
        stop = self.stopped().get(row.rundir.folder.name) if row.number == 0 else None
        return value if value is not None else float(stop["objective"]) if stop else math.nan

    def finished_objective(self, row: Row) -> float | None:
        """The objective of a finished run; None of any other, and of one that was killed before its objective."""
        rundir, name = row.rundir, row.rundir.folder.name
        if name not in self._objectives and rundir.is_finished:
            steps = row.config.train.steps
            frechet = self.plan.objective == "frechet"
            value = known_distance(rundir) if frechet else objective_of(rundir, self.plan.objective, steps)
            if math.isnan(value):
                return None
            self._objectives[name] = value
        return self._objectives.get(name)

    def ranked(self) -> list[int]:
        """Indices of the finished trials, the best first, the earlier one where two are equal."""
        sign = -1 if self.plan.larger_is_better else 1
        finished = [row for row in self.rows if row.number == 0 and self.status(row) == "finished"]
        return [row.trial for row in sorted(finished, key=lambda row: (sign * self.objective(row), row.trial))]

    def drawn_objectives(self) -> list[float]:
        """Objectives of the trials, in their order, where all of them are known at the last step, else none.

        Those that a scheduler has left over are no random draw any more.
        """
        trials = [row for row in self.rows if row.number == 0]
        found = [self.finished_objective(row) for row in trials]
        known = [value for value in found if value is not None]
        return known if len(known) == len(trials) else []

    def add_seeds(self) -> list[Row]:
        """The best trials once more for every further seed; the new rows."""
        self.seeded = True
        best = self.ranked()[: self.plan.top]
        further = [self.row(trial, number) for trial in best for number in range(1, self.plan.seeds)]
        self.rows += further
        return further

    def scores(self, trial: int) -> list[float]:
        """Objectives of all seeds of a trial."""
        rows = [row for row in self.rows if row.trial == trial and self.status(row) == "finished"]
        return [self.objective(row) for row in rows]

    def choose_winner(self) -> bool:
        """Find the trial with the best mean over its seeds on the validation images; False when there is none."""
        best = self.ranked()[: self.plan.top]
        sign = -1 if self.plan.larger_is_better else 1
        self.winner = min(best, key=lambda trial: sign * float(np.mean(self.scores(trial))), default=None)
        return self.winner is not None

    def test_scores(self) -> dict[str, list[float]]:
        """Scores of the winner on the test split by name, one for each seed."""
        rows = [row for row in self.rows if row.trial == self.winner and self.has_tested(row)]
        found = [read_summary(row.rundir.results).scores for row in rows]
        if self.plan.objective == "frechet":
            found = [
                one | {"frechet": known_distance(row.rundir, "test")} for one, row in zip(found, rows, strict=True)
            ]
        return {name: [scores[name] for scores in found] for name in (found[0] if found else {})}


def expected_best(values: list[float], *, larger_is_better: bool) -> list[float]:
    """Expected best of n = 1, 2, ... trials drawn with replacement from these (Dodge et al. 2019, arXiv:1909.03004)."""
    ordered = np.sort(values) if larger_is_better else np.sort(values)[::-1]
    count = len(ordered)
    below = np.arange(count + 1) / count
    return [float(ordered @ (below[1:] ** n - below[:-1] ** n)) for n in range(1, count + 1)]


def write_archive(sweep: Sweep) -> Path:
    """sweep.h5 of what is there now."""
    plan, path = sweep.plan, sweep.folder / "sweep.h5"
    turned = {key for row in sweep.rows for key in row.overrides}

    def settings(row: Row) -> dict[str, Any]:
        return flatten(row.config.model_dump(mode="json"))

    rows = [
        Trial(
            label=row.label,
            fingerprint=row.config.fingerprint,
            status=sweep.status(row),
            parameters=parameters_of(row.config.model),
            steps=last_step(row.rundir),
            seed=row.config.seed,
            role="trial" if row.number == 0 else "seed",
            objective=sweep.objective(row),
            reason=sweep.reason(row),
            overrides=row.overrides | {key: value for key, value in settings(row).items() if key in turned},
            archive=row.rundir.results,
        )
        for row in sweep.rows
    ]
    values = sweep.drawn_objectives()
    fingerprints = {row.rundir.folder.name: row.config.fingerprint for row in sweep.rows if row.number == 0}
    write_sweep(
        path,
        name=plan.name,
        base=plan.base.model_dump(mode="json"),
        fingerprint=plan.base.fingerprint,
        caps=CAPS[plan.base.task.kind]._asdict(),
        provenance=provenance.collect(),
        objective=plan.objective,
        larger_is_better=plan.larger_is_better,
        trials=rows,
        rungs=[
            record | {"fingerprint": fingerprints[record["folder"]]}
            for record in sweep.decisions()
            if record["folder"] in fingerprints
        ],
        expected_best=expected_best(values, larger_is_better=plan.larger_is_better) if values else [],
        facts={
            "search": plan.search,
            "given": plan.given,
            "wanted": plan.wanted,
            "combinations": plan.combinations,
            "combinations_over_the_cap": plan.removed,
            "share_below_the_cap": plan.share,
            "winner": "" if sweep.winner is None else sweep.row(sweep.winner, 0).config.fingerprint,
        },
    )
    return path
