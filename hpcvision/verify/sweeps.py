"""What a sweep's table says of its runs, held against them."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from hpcvision.errors import UserError
from hpcvision.results.run import Run, Sweep
from hpcvision.verify.findings import MOST_NAMED, Finding


def verify_sweep(sweep: Sweep) -> Iterator[Finding]:
    """The table says of every run what the run says of itself."""
    rows: dict[str, Any] = {row["fingerprint"]: row for row in sweep.trials.to_dict("records")}
    strangers = [name for name in sweep.fingerprints if name not in rows]
    ended = [name for name, row in rows.items() if row["status"] == "finished" and name not in sweep.fingerprints]
    if strangers or ended:
        words = f"{', '.join((strangers + ended)[:MOST_NAMED])} only in one of the table and the runs"
        yield Finding("FAIL", "trials", words)
        return
    for name in sweep.fingerprints:
        try:
            run = sweep.run(name)
        except UserError:
            continue  # which is told of the run itself
        row = rows[name]
        if (row["parameters"], row["seed"]) != (run.parameters, run.settings["seed"]):
            yield Finding(
                "FAIL", "trials", f"{run.fingerprint} has other parameters or another seed than the table says"
            )
            return
        known, told = objective_of(run, sweep.objective), row["objective"]
        same = math.isclose(told, known, rel_tol=1e-6) or (math.isnan(told) and math.isnan(known))
        if row["status"] == "finished" and not same:
            words = f"{run.fingerprint} {sweep.objective} {known:.6f}, the table says {told:.6f}"
            yield Finding("FAIL", "trials", words)
            return
    words = f"{len(rows)} rows, {len(sweep.fingerprints)} runs; the table says what they say"
    yield Finding("PASS", "trials", words)
    try:
        yield winner(sweep)
    except UserError as error:
        yield Finding("FAIL", "winner", str(error))


def objective_of(run: Run, objective: str) -> float:
    """The validation score of a finished run's headline weights."""
    if objective == "frechet":
        found = [score for name, score in run.scores.items() if "_validation_" in name and "frechet" in score.values]
        return found[0].values["frechet"].mean if found else math.nan
    points = run.evaluate
    chosen = points[(points["split"] == "validation") & (points["weights"] == run.headline)]
    return float(chosen[objective].iloc[-1]) if len(chosen) else math.nan


def winner(sweep: Sweep) -> Finding:
    """The winner has the best mean over its seeds of all that were trained with as many."""
    trials = sweep.trials
    if not sweep.winner:
        return Finding("SKIP", "winner", "none was chosen")
    if sweep.winner not in set(trials[trials["status"] == "finished"]["fingerprint"]):
        return Finding("FAIL", "winner", f"{sweep.winner} is none of the finished trials")
    finished = trials[trials["status"] == "finished"]
    means: dict[str, list[float]] = {}
    for run in map(sweep.run, finished["fingerprint"]):
        alike = run.config.model_copy(update={"seed": 0}).fingerprint
        means.setdefault(alike, []).append(objective_of(run, sweep.objective))
    chosen = sweep.run(sweep.winner).config.model_copy(update={"seed": 0}).fingerprint
    most = len(means[chosen])
    best = (max if sweep.larger_is_better else min)(
        (name for name in means if len(means[name]) == most), key=lambda name: float(np.mean(means[name]))
    )
    mean = float(np.mean(means[chosen]))
    if not math.isclose(mean, float(np.mean(means[best])), rel_tol=1e-6):
        return Finding(
            "FAIL", "winner", f"{sweep.winner} has {mean:.6f}, another one {float(np.mean(means[best])):.6f}"
        )
    return Finding("PASS", "winner", f"{sweep.winner} has the best {sweep.objective} of those with {most} seeds")
