"""Optuna, through Ray: it proposes where on the cap surface the next trial is."""

import math
from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from hpcvision.sweep.collect import Sweep

CELL, POSITION = "cell", "position"


class Proposals:
    """A search over the cells of the surface, the position within one, and the settings that cost nothing.

    None of its points is over the cap, so no trial is wasted and nothing pushes the search away from the cap.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.surface = sweep.plan.surfaces[0]
        space: dict[str, Any] = {key: domain for key, domain in self.surface.free.items() if isinstance(domain, Domain)}
        if len(self.surface.cells) > 1:
            space[CELL] = tune.choice(list(range(len(self.surface.cells))))
        if self.surface.continuous:
            space[POSITION] = tune.uniform(0.0, 1.0)
        known = [row for row in sweep.rows if row.number == 0 and sweep.has_ended(row)]
        points = [sweep.plan.trials[row.trial].point for row in known]
        self.search = OptunaSearch(
            space=space,
            metric="objective",
            mode=sweep.plan.mode,
            seed=len(sweep.rows),  # a resumed search does not propose the same points again
            points_to_evaluate=points or None,
            evaluated_rewards=[sweep.objective(row) for row in known] or None,
        )

    def propose(self, trial_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The overrides of the next trial, and its point."""
        point = dict(self.search.suggest(trial_id))
        free = {key: point.get(key, domain) for key, domain in self.surface.free.items()}
        return self.surface.at(int(point.get(CELL, 0)), float(point.get(POSITION, 0.0)), free), point

    def learn(self, trial_id: str, result: dict[str, Any] | None, *, error: bool) -> None:
        """How a trial has ended."""
        failed = error or not result or not math.isfinite(result.get("objective", math.nan))
        self.search.on_trial_complete(trial_id, None if failed else result, failed)
