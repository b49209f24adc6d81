"""Ray's ASHA with a memory: what every trial had at every rung and what was decided, in one file of the sweep."""

import contextlib
import fcntl
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from hpcvision.rundir import read_journal
from hpcvision.sweep.words import Asha


class RecordedAsha(ASHAScheduler):  # type: ignore[misc]
    """Asynchronous successive halving whose comparisons survive the driver.

    Each line of the file has trial (index in the plan), step, objective and decision (CONTINUE or STOP), in the order
    in which they were made; a trial is stopped when it is worse than the quantile of those before it at that rung.
    Shares of a sweep that run apart from each other write into one file, and compare with all.
    """

    def __init__(self, path: Path, asha: Asha, *, metric: str, mode: str, steps: int) -> None:
        super().__init__(
            time_attr="steps",
            metric=metric,
            mode=mode,
            max_t=steps,
            grace_period=asha.first_rung,
            reduction_factor=asha.reduction_factor,
        )
        self.path, self.known = path, 0
        self.catch_up()

    def catch_up(self) -> None:
        """Hear what was decided before, and elsewhere, as if it came now, in its order."""
        records = read_rungs(self.path)
        for number, record in enumerate(records[self.known :], start=self.known):
            before = SimpleNamespace(trial_id=f"before-{number}")
            super().on_trial_add(None, before)
            super().on_trial_result(None, before, {"steps": record["step"], self._metric: record["objective"]})
        self.known = len(records)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray's decision, written down before it is carried out."""
        with self.path.open("a") as file:
            with contextlib.suppress(OSError):  # where locks fail, there is none
                fcntl.flock(file, fcntl.LOCK_EX)
            self.catch_up()
            decision = str(super().on_trial_result(tune_controller, trial, result))
            record = {
                "event": "rung",
                "trial": trial.config["trial"],
                "folder": Path(trial.config["folder"]).name,
                "step": result["steps"],
                "objective": result["objective"],
                "decision": "stop" if decision == TrialScheduler.STOP else "continue",
            }
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
            self.known += 1
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:  # noqa: ARG002
        """Forget the trial. Ray would compare its last score at the highest rung that it has not reported *here*.

        After a restart those are the rungs from before it: the scores of later steps would count there.
        """
        self._trial_info.pop(trial.trial_id, None)


def read_rungs(path: Path) -> list[dict[str, Any]]:
    """All decisions, in their order."""
    return read_journal(path)
