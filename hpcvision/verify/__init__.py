"""Proofs from an archive alone: what it claims of itself is counted, added up and hashed again."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hpcvision.config import CAPS, flatten
from hpcvision.errors import CapExceeded, UserError
from hpcvision.results.digests import broken_seals
from hpcvision.results.files import DAMAGE, array, reading
from hpcvision.results.places import Classes, Place, plain
from hpcvision.results.reader import mapping
from hpcvision.results.run import Run, load_sweep, read_run
from hpcvision.results.scores import Score
from hpcvision.verify.findings import MOST_NAMED, Finding
from hpcvision.verify.sweeps import verify_sweep

__all__ = ["Finding", "verify"]


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
        yield from verify_run(Place(path), scores=scores)
        return
    sweep = load_sweep(path)
    yield from verify_sweep(sweep)
    passed: dict[str, int] = {}
    for name in sweep.fingerprints:
        place = Place(path, f"/runs/{name}")
        try:
            with place.open() as group:
                inside = seals(broken_seals(group))
        except UserError as error:
            inside = Finding("FAIL", "hashes", str(error))
        for finding in (inside, *verify_run(place, scores=scores)):
            if finding.verdict == "FAIL":
                yield Finding("FAIL", finding.subject, f"{name}: {finding.words}")
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


def verify_run(place: Place, *, scores: bool) -> Iterator[Finding]:
    """The findings about one run; what cannot be looked into fails."""
    try:
        run = read_run(place)
    except UserError as error:
        yield Finding("FAIL", "caps" if isinstance(error, CapExceeded) else "run", str(error))
        return
    checks: list[tuple[str, Callable[[Run], Finding]]] = [
        ("parameters", parameters),
        ("settings", settings),
        ("caps", caps),
        ("ledger", ledger),
        ("curves", curves),
        ("scores", stored_scores),
    ]
    if scores:
        from hpcvision.verify import scores as computed

        checks.append(("scores anew", computed.on_a_split))
        checks.append(("images", computed.of_stored_images))
        drawn = [name for name, score in run.scores.items() if "extractor" in score.passport]
        checks += [(f"scores anew {name}", computed.Drawn(name)) for name in drawn]
    for subject, check in checks:
        try:
            finding = check(run)
        except UserError as error:
            finding = Finding("FAIL", subject, str(error))
        except (ZeroDivisionError, *DAMAGE) as error:
            words = " ".join(str(error).split())[:200]
            finding = Finding("FAIL", subject, f"cannot be computed from what is stored: {words}")
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


def settings(run: Run) -> Finding:
    """The configuration is the one that the run is named after, and the same in both places of the file."""
    found = run.config.fingerprint
    if found != run.fingerprint:
        return Finding("FAIL", "settings", f"fingerprint {found} by the configuration, the file says {run.fingerprint}")
    wanted = run.config.train.steps
    if run.steps > wanted or (run.finished and run.steps != wanted):
        return Finding("FAIL", "settings", f"the file says {run.steps:,} steps, its configuration {wanted:,}")
    with run.place.open() as group:
        flat = {key: plain(value) for key, value in group["config"].attrs.items()}
        stored = flatten(mapping(group, "config_json"))
    wrong = [
        key
        for key in sorted(flat.keys() | stored)
        if flat.get(key) != ("none" if stored.get(key) is None else stored[key])
    ]
    if wrong:
        return Finding(
            "FAIL",
            "settings",
            f"{wrong[0]} is {flat.get(wrong[0])!r} in /config, {stored.get(wrong[0])!r} in config_json",
        )
    return Finding("PASS", "settings", f"fingerprint {found} by the configuration, {len(flat)} settings")


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
    """Scores follow from what they were made of: confusion matrix, last evaluation, the values of sets of seeds."""
    finals = {name: score for name, score in run.scores.items() if "extractor" not in score.passport}
    points = run.evaluate
    if bool(run.test_reads) != bool((points["split"] == "test").any() or any("test" in name for name in run.scores)):
        return Finding("FAIL", "scores", f"the test split was read {run.test_reads} times, which the scores contradict")
    if wrong := wrong_means(run):
        return Finding("FAIL", "scores", wrong)
    if not finals:
        return Finding("SKIP", "scores", "no final scores: the run has not finished")
    classes = run.classes
    for split, score in finals.items():
        if classes is not None and (wrong := wrong_counts(classes, score)):
            return Finding("FAIL", "scores", f"{split} {wrong}")
        chosen = points[(points["split"] == split) & (points["weights"] == run.headline)]
        last = chosen[chosen["step"] == run.steps]
        for name, value in score.values.items():
            found = float(last[name].iloc[-1]) if len(last) and name in last else math.nan
            if not math.isclose(found, value.mean, rel_tol=1e-6):
                words = f"final {split} {name} {value.mean:.6f}, last evaluation {found:.6f}"
                return Finding("FAIL", "scores", words)
    by = "the confusion matrix and the last evaluation" if classes is not None else "the last evaluation"
    return Finding("PASS", "scores", f"{' and '.join(finals)} scores agree with {by}")


def wrong_counts(classes: Classes, score: Score) -> str:
    """What of an accuracy, its interval and those of the classes does not follow from the confusion matrix."""
    from hpcvision.metrics.accuracy import wilson_interval

    confusion, known = classes.confusion, score.values["accuracy"]
    right, count = int(confusion.trace()), int(confusion.sum())
    counted = (right / count, *wilson_interval(right, count))
    if not np.allclose(counted, (known.mean, known.low, known.high), atol=1e-9):
        return f"accuracy {known.mean:.6f}, confusion matrix {counted[0]:.6f}, or its interval"
    sums = confusion.sum(axis=1)
    there = sums > 0
    if not np.allclose(confusion.diagonal()[there] / sums[there], classes.accuracy[there], atol=1e-6):
        return "accuracy of a class is not that of the confusion matrix"
    return ""


def wrong_means(run: Run) -> str:
    """Which mean or deviation of drawn images' scores does not follow from the values of the sets."""
    with run.place.open() as group:
        for name, score in run.scores.items():
            for key, value in score.values.items() if "extractor" in score.passport else ():
                values = array(group[f"scores/{name}/{key}"])
                if not math.isclose(float(values.mean()), value.mean, rel_tol=1e-9):
                    return f"{name} {key} {value.mean:.6f}, mean of its values {values.mean():.6f}"
                if len(values) > 1 and not math.isclose(
                    values.std(ddof=1), value.high - value.mean, rel_tol=1e-6, abs_tol=1e-12
                ):
                    return f"{name} {key} has another deviation than its values"
    return ""
