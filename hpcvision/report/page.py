"""`hpcvision report`: one page about runs and sweeps that needs no network, opens from a disk, and holds everything."""

import base64
import hashlib
import html
import json
import math
import os
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

from hpcvision.config import flatten
from hpcvision.errors import UserError
from hpcvision.report.again import checked_out, sweep_command, training_command
from hpcvision.report.archive import how_reduced, in_words, opened
from hpcvision.report.parts import chart, code, facts, findings, heat_map, is_number, picture_parts, table
from hpcvision.report.several import with_seconds
from hpcvision.results import Run, Sweep
from hpcvision.rundir import atomic_write
from hpcvision.verify import verify

LARGEST = 5_000_000
"""Bytes of a page."""
FOR_THE_REST = 100_000
"""Script, style and headings; what the sections leave is for pictures."""
MOST_POINTS = 1_000
"""Of a curve; more are not seen in a chart of 500 pixels."""


def write_page(archives: list[Path], output: Path) -> Path:
    """Write the page about these archives; raises UserError for one that cannot be read, or more than fit a page."""
    parts = [about(path) for path in dict.fromkeys(archives)]
    room = LARGEST - FOR_THE_REST - sum(len(body.encode(errors="replace")) for _, _, body in parts)
    sections = []
    for path, found, body in parts:
        pictures, room = picture_parts(found if isinstance(found, Run) else winner_of(found), path, room)
        sections.append(section(path, found, body.replace(PICTURES, pictures)))
    text = whole_page([found for _, found, _ in parts], sections)
    content = text.encode(errors="replace")
    if len(content) > LARGEST:
        raise UserError(
            "the page would be over 5 MB; give fewer archives, or take `hpcvision results export` for tables"
        )
    with atomic_write(output) as file:
        file.write(content)
    return output


PICTURES = "<!-- pictures -->"
SELECTED = "Selection is on the validation images; the winner alone reads the test split."
VERIFY = ("hpcvision", "results", "verify")


def about(path: Path) -> tuple[Path, Run | Sweep, str]:
    """(archive, what is in it, its part of the page without pictures)."""
    found = opened(path)
    return path, found, of_run(found, path) if isinstance(found, Run) else of_sweep(found, path)


def winner_of(sweep: Sweep) -> Run | None:
    """The run of the best trial."""
    return sweep.run(sweep.winner) if sweep.winner in sweep.fingerprints else None


def whole_page(found: list[Run | Sweep], sections: list[str]) -> str:
    """The page around its sections. A policy in its head lets nothing run but its script, and nothing be fetched."""
    css, script = (files("hpcvision.report").joinpath(f"page.{kind}").read_text() for kind in ("css", "js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    title = ", ".join(dict.fromkeys(item.name for item in found))
    links = "".join(f'<li><a href="#{anchor(item)}">{html.escape(heading(item))}</a></li>' for item in found)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><link rel="icon" href="data:,"><style>{css}</style></head>
<body><main><h1>{html.escape(title)}</h1>
{f"<nav aria-label='On this page'><ul>{links}</ul></nav>" if len(found) > 1 else ""}
{"".join(sections)}
</main><script>{script}</script></body></html>
"""


def anchor(found: Run | Sweep) -> str:
    """Where on the page it is."""
    return hashlib.sha256(os.fsencode(found.path)).hexdigest()[:12]


def heading(found: Run | Sweep) -> str:
    """Of its section."""
    return f"Sweep {found.name}" if isinstance(found, Sweep) else f"Run {found.name} {found.fingerprint}"


def section(path: Path, found: Run | Sweep, body: str) -> str:
    """A part of the page."""
    title = html.escape(heading(found))
    return (
        f'<section id="{anchor(found)}" aria-label="{title}"><h2>{title}</h2>'
        f'<p class="faint">{html.escape(str(path))}</p>{body}</section>'
    )


def of_run(run: Run, path: Path) -> str:
    """Claims, certificate, curves, pictures, confusion, ledger, settings, provenance, commands."""
    return "".join(
        (
            claims(run),
            "<h3>Certificate</h3><p>Counted, added up and hashed from this file alone, when the page was made.</p>",
            findings(verify(path)),
            curves(run),
            PICTURES,
            confusion(run),
            "<h3>Ledger of steps</h3>",
            table(list(run.ledger.columns), run.ledger.to_numpy(dtype=object).tolist(), caption="Stays on machines"),
            commands(run, path),
            details(run),
        )
    )


def claims(run: Run) -> str:
    """Each score with its interval, and its passport to unfold."""
    if not run.scores:
        state = "has finished, without scores" if run.finished else "has not finished"
        return f'<p class="claim">{html.escape(run.name)} {state}.</p>'
    made = []
    for name, score in run.scores.items():
        values = [(key.replace("_", " "), in_words(key, value)) for key, value in score.values.items()]
        main = in_words(score.main, score.values[score.main])
        where = {"test": "on the test split", "validation": "on the validation split"}.get(name, f"({name})")
        words = f"{score.main.replace('_', ' ')} {main} {where}"
        made.append(f'<p class="claim">{html.escape(words)}</p>')
        passport = facts([*values, *((key, str(value)) for key, value in score.passport.items())])
        made.append(
            f"<details><summary>All values and the passport of {html.escape(name)}</summary>{passport}</details>"
        )
    reads = "once" if run.test_reads == 1 else f"{run.test_reads} times"
    made.append(
        f"<p>{run.parameters:,} parameters, {run.steps:,} optimisation steps, {html.escape(str(run.data['name']))}; "
        f"the test split was read {reads}.</p>"
    )
    if run.reduced_from:
        made.append(f"<p>Reduced copy {html.escape(how_reduced(run))}.</p>")
    return "".join(made)


def thinned(values: list[Any]) -> list[Any]:
    """At most MOST_POINTS of them, evenly, with the last."""
    step = math.ceil(len(values) / MOST_POINTS)
    return values[::step] + ([] if (len(values) - 1) % step == 0 else values[-1:]) if values else []


def curves(run: Run) -> str:
    """Loss and accuracy against the step, for training and validation."""
    made = []
    for name in ("loss", "accuracy"):
        if name not in run.train:
            continue
        points = run.evaluate[run.evaluate["split"] == "validation"]
        series = [
            {
                "name": f"training {name}",
                "x": thinned(run.train["step"].tolist()),
                "y": thinned(run.train[name].tolist()),
            }
        ]
        for kind, words in (("raw", "validation"), ("ema", "validation, moving average")):
            own = points[points["weights"] == kind]
            if len(own):
                series.append({"name": words, "x": own["step"].tolist(), "y": own[name].tolist()})
        made.append(chart(f"{name} against optimisation steps", {"x": "step", "series": series}))
    return f'<h3>Curves</h3><div class="charts">{"".join(made)}</div>' if made else ""


def confusion(run: Run) -> str:
    """The classes that are taken for each other most often, and the whole matrix to unfold."""
    classes = run.classes
    if classes is None:
        return ""
    counts, labels = classes.confusion, classes.names
    pairs = [
        (int(counts[i, j]), i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j and counts[i, j]
    ]
    rows = [[labels[i], labels[j], count, int(counts[i].sum())] for count, i, j in sorted(pairs, reverse=True)[:10]]
    per_class = sorted(
        zip(classes.accuracy.tolist(), labels, strict=True), key=lambda item: (math.isnan(item[0]), item[0])
    )
    matrix = table(
        ["true \\ predicted", *labels], [[name, *row] for name, row in zip(labels, counts.tolist(), strict=True)]
    )
    ranked = table(["class", "accuracy"], [[name, value] for value, name in per_class])
    return (
        "<h3>Confusion matrix</h3>"
        + heat_map(counts, "rows are true classes, columns predicted ones; the darker, the more images")
        + table(["true", "predicted", "images", "of"], rows, caption="Most frequent confusions")
        + f"<details><summary>Accuracy of each class</summary>{ranked}</details>"
        + f"<details><summary>All {len(labels)} x {len(labels)} counts</summary>{matrix}</details>"
    )


def commands(run: Run, path: Path) -> str:
    """How to make the run again, and how to prove the file."""
    lines = [*checked_out(run.provenance), training_command(run)]
    lines.append(shlex.join([*VERIFY, str(path), "--scores"]))
    return f"<h3>Make it again</h3>{code(lines)}"


def details(run: Run) -> str:
    """Settings and provenance, to unfold."""
    settings = facts([(key, "none" if value is None else str(value)) for key, value in flatten(run.settings).items()])
    known = facts(
        [(key, json.dumps(value) if not isinstance(value, str) else value) for key, value in run.provenance.items()]
    )
    return (
        f"<h3>Settings and provenance</h3><details><summary>All settings</summary>{settings}</details>"
        f"<details><summary>Code, packages, machine</summary>{known}</details>"
    )


def of_sweep(sweep: Sweep, path: Path) -> str:
    """The winner, the certificate, the objective against what was turned, all trials, and the winner's run."""
    trials = with_seconds(sweep)
    best = winner_of(sweep)
    merged = sweep.search == "merged"
    told = f"{len(trials)} runs, objective validation {sweep.objective}"
    claim = f'<p class="claim">{html.escape(told)}</p>'
    keys = [key for key in map(str, trials.columns) if "." in key]
    columns = ["label", "role", "status", "parameters", "steps", "seconds", "objective", *keys, "fingerprint", "reason"]
    columns = [name for name in columns if name in trials]
    table_id = f"trials-{anchor(sweep)}"
    rows = trials[columns].to_numpy(dtype=object).tolist()
    counted = sum(trials["status"] == "finished")
    drawn = [objective_chart(trials, key, sweep) for key in [*keys, "parameters", "seconds"] if key in trials]
    parts = [
        claim,
        f"<p>{counted} finished. {'' if merged else SELECTED}</p>",
        claims(best) if best else "",
        "<h3>Certificate</h3>",
        findings(verify(path)),
        f'<h3>Objective</h3><div class="charts">{"".join(drawn)}</div>',
        f'<h3>Trials</h3><p><label>Only rows with <input type="search" aria-controls="{table_id}" '
        f'data-count="{table_id}-count"></label> '
        f'<span id="{table_id}-count" role="status">{len(rows)} of {len(rows)}</span></p>',
        table(columns, rows, table_id=table_id, sortable=True, caption="Trials, and the best with further seeds"),
        "<h3>Make it again</h3>",
        code([*checked_out(sweep.provenance), sweep_command(sweep), shlex.join([*VERIFY, str(path)])]),
    ]
    if best:
        parts += [f"<h3>The winner, {best.fingerprint}</h3>", curves(best), PICTURES, confusion(best), details(best)]
    return "".join(parts)


def objective_chart(trials: Any, key: str, sweep: Sweep) -> str:
    """The objective of finished and stopped trials against one setting."""
    values = trials[key].tolist()
    spec: dict[str, Any] = {"x": key, "points": True, "series": []}
    known = [value for value in values if value is not None and value == value]
    if not all(map(is_number, known)) or (len(known) < len(values) and key != "seconds"):
        named = ["not set" if value is None or value != value else str(value) for value in values]
        spec["ticks"] = sorted(set(named))
        values = [spec["ticks"].index(name) for name in named]
    elif known and min(known) > 0 and max(known) > 30 * min(known):
        spec["log"] = True
    for status in ("finished", "stopped"):
        chosen = [n for n, found in enumerate(trials["status"]) if found == status and values[n] == values[n]]
        if chosen:
            objective = trials["objective"].tolist()
            points = {"x": [values[n] for n in chosen], "y": [objective[n] for n in chosen]}
            labels = [trials["label"].iloc[n] for n in chosen]
            spec["series"].append({"name": status, "labels": labels, "hollow": status == "stopped"} | points)
    return chart(f"validation {sweep.objective} against {key}", spec)
