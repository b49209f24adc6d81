"""Tables of a sweep for a terminal: its trials, and the configurations of one that is not started."""

import math
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from hpcvision.config import CAPS, apply
from hpcvision.models.counting import parameters_of
from hpcvision.report.tables import keep_cells_whole, table
from hpcvision.sweep.collect import Row, Sweep, expected_best
from hpcvision.sweep.plan import Plan, Planned
from hpcvision.sweep.trial import last_step

COLUMNS = 5  # settings that fit into the table of a terminal
SHOWN = 10  # configurations of a dry run


def print_trials(sweep: Sweep, console: Console) -> None:
    """All trials, the best first, and what the best one is worth."""
    plan = sweep.plan
    keys = list(dict.fromkeys(key for row in sweep.rows if not row.number for key in row.overrides))
    if len(keys) > COLUMNS:  # named variants that change much; their names say it
        keys = []
    cap = CAPS[plan.base.task.kind].parameters
    numbers = ("steps", "parameters", "of cap", plan.objective)
    shown = table("trial", "status", "steps", "parameters", "of cap", plan.objective, *headings(keys), numbers=numbers)
    sign = -1 if plan.larger_is_better else 1
    trials = [row for row in sweep.rows if row.number == 0]
    order = {"finished": 0, "stopped": 1, "diverged": 2, "unfinished": 3, "failed": 4}
    for row in sorted(
        trials, key=lambda row: (order[sweep.status(row)], -last_step(row.rundir), sign * worst(sweep, row))
    ):
        parameters = parameters_of(row.config.model)
        settings = [escape(in_a_cell(row.overrides.get(key, ""))) for key in keys]
        steps, full = f"{last_step(row.rundir):,}", f"{parameters / cap:.1%}"
        objective = f"{sweep.objective(row):.4f}"
        shown.add_row(
            row.label.removeprefix("trial "), sweep.status(row), steps, f"{parameters:,}", full, objective, *settings
        )
    keep_cells_whole(shown, console.width)
    console.print(shown)
    values = sweep.drawn_objectives()
    if len(values) > 1 and plan.search != "variants":
        curve = expected_best(values, larger_is_better=plan.larger_is_better)
        picked = sorted({1, 2, 4, 8, 16, 32, 64, len(curve)} & set(range(1, len(curve) + 1)))
        console.print("expected best of n trials: " + ", ".join(f"{n}: {curve[n - 1]:.4f}" for n in picked))
    if sweep.winner is not None:
        found = sweep.scores(sweep.winner)
        console.print(f"best: {sweep.plan.trials[sweep.winner].label}, validation {plan.objective} {spread(found)}")
        for name, tested in sweep.test_scores().items():
            if name in ("accuracy", "loss", "frechet"):
                console.print(f"  test {name} {spread(tested)}, read once for each seed")


def worst(sweep: Sweep, row: Row) -> float:
    """For sorting: the objective, or the end of the list."""
    value = sweep.objective(row)
    return (-math.inf if sweep.plan.larger_is_better else math.inf) if math.isnan(value) else value


def spread(values: list[float]) -> str:
    """`0.7891 ± 0.0042 (3 seeds)`."""
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{deviation} ({len(values)} seed{'s' if len(values) > 1 else ''})"


def headings(keys: list[str]) -> list[str]:
    """The last words of the keys, where they say which is meant, with blanks where a line may end."""
    short = [key.rpartition(".")[2] for key in keys]
    return [key.replace("_", " ") for key in (short if len(set(short)) == len(short) else keys)]


def in_a_cell(value: Any) -> str:
    """A setting, short."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_planned(plan: Plan, console: Console) -> None:
    """The first configurations with their parameters, of a sweep that is not started."""
    cap = CAPS[plan.base.task.kind].parameters
    trials = plan.trials[:SHOWN]
    if plan.search == "optuna":  # Optuna begins at random
        random = np.random.RandomState(0)
        trials = [Planned(f"example {n + 1}", plan.surfaces[0].draw(random)) for n in range(min(SHOWN, plan.wanted))]
    keys = list(dict.fromkeys(key for planned in trials for key in planned.overrides))
    shown = table("trial", "parameters", "of cap", *headings(keys), numbers=("parameters", "of cap"))
    for planned in trials:
        parameters = parameters_of(apply(plan.base, planned.overrides).model)
        values = [escape(in_a_cell(planned.overrides.get(key, ""))) for key in keys]
        shown.add_row(planned.label.removeprefix("trial "), f"{parameters:,}", f"{parameters / cap:.1%}", *values)
    keep_cells_whole(shown, console.width)
    console.print(shown)
