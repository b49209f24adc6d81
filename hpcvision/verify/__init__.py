"""Proofs from an archive alone: what it claims of itself is counted, added up and hashed again."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpcvision.config import CAPS
from hpcvision.errors import UserError
from hpcvision.results.digests import broken_seals
from hpcvision.results.files import reading
from hpcvision.results.places import Place
from hpcvision.results.run import Run, Sweep, load_sweep, read_run

Verdict = Literal["PASS", "FAIL", "SKIP"]
MOST_NAMED = 5
"""Of broken datasets and attributes, so many are named."""


@dataclass(frozen=True)
class Finding:
    """One claim of an archive and what came of it."""

    verdict: Verdict
    subject: str
    words: str


def verify(path: Path, *, scores: bool = False) -> Iterator[Finding]:
    """All findings about a results.h5 or a sweep.h5, one by one; of a sweep's runs what fails.

    scores: also those that are computed anew from weights, data and stored images, which takes minutes and the data.
    Raises UserError for a file that cannot be read at all.
    """
    with reading(path, "run", "sweep") as file:
        kind = str(file.attrs["kind"])
        broken = broken_seals(file)
    yield seals(broken)
    if kind == "run":
        yield from verify_run(read_run(Place(path)), scores=scores)
        return
    sweep = load_sweep(path)
    yield from verify_sweep(sweep)
    passed: dict[str, int] = {}
    for run in sweep.runs():
        with run.place.open() as group:
            inside = seals(broken_seals(group))
        for finding in (inside, *verify_run(run, scores=scores)):
            if finding.verdict == "FAIL":
                yield Finding("FAIL", finding.subject, f"{run.fingerprint}: {finding.words}")
            passed[finding.subject] = passed.get(finding.subject, 0) + (finding.verdict == "PASS")
    for subject, count in passed.items():
        if count:
            yield Finding("PASS", subject, f"{count} of {len(sweep.fingerprints)} runs")


def seals(broken: list[str]) -> Finding:
    """Whether every dataset and attribute is as it was written."""
    if not broken:
        return Finding("PASS", "hashes", "every dataset and attribute is as it was written")
    named = ", ".join(broken[:MOST_NAMED])
    more = f" and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
    return Finding("FAIL", "hashes", f"changed, missing or added since it was written: {named}{more}")


def verify_run(run: Run, *, scores: bool) -> Iterator[Finding]:
    """The findings about one run; one that cannot be looked into fails."""
    checks: list[tuple[str, Callable[[Run], Finding]]] = [
        ("parameters", parameters),
        ("fingerprint", fingerprint),
        ("caps", caps),
        ("ledger", ledger),
        ("curves", curves),
        ("scores", stored_scores),
    ]
    if scores:
        from hpcvision.verify import scores as computed

        checks.append(("scores anew", computed.on_a_split))
        checks.append(("images", computed.of_stored_images))
        checks += [
            (f"scores anew {name}", computed.Drawn(name))
            for name in run.scores
            if "extractor" in run.scores[name].passport
        ]
    for subject, check in checks:
        try:
            finding = check(run)
        except UserError as error:
            finding = Finding("FAIL", subject, str(error))
        yield finding


def parameters(run: Run) -> Finding:
    """The stored weights have as many parameters as the file and the configuration say."""
    import torch

    from hpcvision.models import build_model

    with torch.device("meta"):
        model = build_model(run.config.model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    counted = {name for name, _ in model.named_parameters()}
    expected = sum(parameter.numel() for parameter in model.parameters())
    for kind, weights in run.weights.items():
        wrong = sorted(
            name for name in shapes.keys() | weights if shapes.get(name) != np.shape(weights.get(name, math.nan))
        )
        if wrong:
            return Finding("FAIL", "parameters", f"{kind} weights do not fit {run.config.model.kind}: {wrong[0]}")
        found = sum(weights[name].size for name in counted)
        if not found == expected == run.parameters:
            words = f"{kind} weights {found:,}, configuration {expected:,}, file says {run.parameters:,}"
            return Finding("FAIL", "parameters", words)
        if not all(np.isfinite(values).all() for values in weights.values()):
            return Finding("FAIL", "parameters", f"{kind} weights are not all finite")
    sets = " and ".join(run.weights)
    return Finding(
        "PASS", "parameters", f"{expected:,} in the {sets} weights, by the configuration, and as the file says"
    )


def fingerprint(run: Run) -> Finding:
    """The configuration is the one that the run is named after."""
    found = run.config.fingerprint
    same = found == run.fingerprint
    words = f"{found} from the configuration" + ("" if same else f", the file says {run.fingerprint}")
    return Finding("PASS" if same else "FAIL", "fingerprint", words)


def caps(run: Run) -> Finding:
    """A capped run is below the caps of its task, as this hpcvision knows them."""
    cap = CAPS[run.config.task.kind]
    words = f"{run.parameters:,} of < {cap.parameters:,} parameters, {run.steps:,} of <= {cap.steps:,} steps"
    if run.track != "capped":
        return Finding("SKIP", "caps", f"track={run.track}: {words}, no claim")
    if run.caps != cap._asdict():
        return Finding("FAIL", "caps", f"the file says {run.caps}, they are {cap._asdict()}")
    within = run.parameters < cap.parameters and run.steps <= cap.steps
    return Finding("PASS" if within else "FAIL", "caps", words)


def ledger(run: Run) -> Finding:
    """The stays follow each other without a gap and add up to the steps, each counted once."""
    rows = zip(run.ledger["from_step"].tolist(), run.ledger["to_step"].tolist(), strict=True)
    end = 0
    for number, (first, last) in enumerate(rows):
        if first != end or last < first:
            return Finding(
                "FAIL", "ledger", f"stay {number + 1} goes from step {first:,} to {last:,}, after step {end:,}"
            )
        end = last
    wanted, count = run.config.train.steps, len(run.ledger)
    stays = "1 stay makes" if count == 1 else f"{count} stays make"
    if end > wanted or (run.finished and end != wanted):
        return Finding("FAIL", "ledger", f"{stays} {end:,} steps, the run has {wanted:,}")
    ended = "all" if end == wanted else "so far"
    return Finding("PASS", "ledger", f"{stays} {end:,} of {wanted:,} steps, {ended}")


def curves(run: Run) -> Finding:
    """The points of the curves are in order, finite, and end where the run does."""
    steps, last = run.train["step"].to_numpy(), int(run.ledger["to_step"].max()) if len(run.ledger) else 0
    if (np.diff(steps) <= 0).any() or (run.finished and (not len(steps) or steps[-1] != last)):
        return Finding("FAIL", "curves", f"the points of the training curve do not lead to step {last:,} in order")
    if not np.isfinite(run.train["loss"].to_numpy()).all():
        return Finding("FAIL", "curves", "the training loss is not finite everywhere")
    return Finding("PASS", "curves", f"{len(steps):,} points to step {last:,}, {len(run.evaluate):,} evaluations")


def stored_scores(run: Run) -> Finding:
    """Final accuracy and interval are those of the confusion matrix, all scores those of the last evaluation."""
    finals = {name: score for name, score in run.scores.items() if name in ("test", "validation")}
    if not finals:
        return Finding("SKIP", "scores", "no final scores: the run has not finished")
    from hpcvision.metrics.accuracy import wilson_interval

    classes, points = run.classes, run.evaluate
    for split, score in finals.items():
        if classes is not None:
            right, count = int(classes.confusion.trace()), int(classes.confusion.sum())
            known, counted = score.values["accuracy"], (right / count, *wilson_interval(right, count))
            if not np.allclose(counted, (known.mean, known.low, known.high), atol=1e-9):
                words = f"{split} accuracy {known.mean:.6f}, confusion matrix {counted[0]:.6f}, or its interval"
                return Finding("FAIL", "scores", words)
        chosen = points[(points["split"] == split) & (points["weights"] == run.headline)]
        last = chosen[chosen["step"] == run.steps]
        for name, value in score.values.items():
            if len(last) and not math.isclose(float(last[name].iloc[-1]), value.mean, rel_tol=1e-6):
                words = f"final {split} {name} {value.mean:.6f}, last evaluation {float(last[name].iloc[-1]):.6f}"
                return Finding("FAIL", "scores", words)
    if run.test_reads and "test" not in finals:
        return Finding("FAIL", "scores", f"the test split was read {run.test_reads} times, but there is no test score")
    by = "the confusion matrix and the last evaluation" if classes is not None else "the last evaluation"
    return Finding("PASS", "scores", f"{' and '.join(finals)} scores agree with {by}")


def verify_sweep(sweep: Sweep) -> Iterator[Finding]:
    """The table says of every run what the run says of itself."""
    rows: dict[str, Any] = {row["fingerprint"]: row for row in sweep.trials.to_dict("records")}
    strangers = [name for name in sweep.fingerprints if name not in rows]
    ended = [name for name, row in rows.items() if row["status"] == "finished" and name not in sweep.fingerprints]
    if strangers or ended:
        words = f"{', '.join((strangers + ended)[:MOST_NAMED])} only in one of the table and the runs"
        yield Finding("FAIL", "trials", words)
        return
    for run in sweep.runs():
        row = rows[run.fingerprint]
        if (row["parameters"], row["seed"]) != (run.parameters, run.settings["seed"]):
            yield Finding(
                "FAIL", "trials", f"{run.fingerprint} has other parameters or another seed than the table says"
            )
            return
        known = objective_of(run, sweep.objective)
        if row["status"] == "finished" and not math.isclose(row["objective"], known, rel_tol=1e-6):
            words = f"{run.fingerprint} {sweep.objective} {known:.6f}, the table says {row['objective']:.6f}"
            yield Finding("FAIL", "trials", words)
            return
    words = f"{len(rows)} rows, {len(sweep.fingerprints)} runs; the table says what they say"
    yield Finding("PASS", "trials", words)
    yield winner(sweep)


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
