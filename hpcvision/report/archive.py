"""One archive in a terminal, two side by side, and its tables as files for other programs."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape

from hpcvision.config import flatten
from hpcvision.errors import UserError
from hpcvision.report.tables import console, keep_cells_whole, table
from hpcvision.results import Run, Sweep, load, load_sweep
from hpcvision.results.files import reading
from hpcvision.results.run import archive_of
from hpcvision.results.scores import Score, Value
from hpcvision.rundir import atomic_write

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["csv", "parquet", "json", "markdown"]
TABLES = {"run": ("train", "evaluate", "ledger", "summary"), "sweep": ("trials", "rungs", "summary")}
MOST_STEPS = 5
"""At so many steps two curves are laid side by side, and at the last."""
MOST_TRIALS = 30
"""So many are shown in a terminal."""


def opened(path: Path) -> Run | Sweep:
    """The run or the sweep at a path, which may be a folder."""
    path = archive_of(path, "sweep.h5") if (path / "sweep.h5").exists() else archive_of(path)
    with reading(path, "run", "sweep") as file:
        kind = file.attrs["kind"]
    return load(path) if kind == "run" else load_sweep(path)


def in_words(name: str, value: Value) -> str:
    """A value with its interval; an accuracy in per cent."""
    factor, unit, digits = (100, " %", 2) if name == "accuracy" else (1, "", 4)
    words = f"{factor * value.mean:.{digits}f}{unit}"
    if math.isnan(value.low):
        return words
    return f"{words} ({factor * value.low:.{digits}f} to {factor * value.high:.{digits}f}, {value.interval})"


def print_archive(path: Path) -> None:
    """Everything about a run or a sweep but its curves, weights and pixels."""
    found, out = opened(path), console()
    if isinstance(found, Sweep):
        print_sweep(found, out)
    else:
        print_run(found, out)


def print_run(run: Run, out: Console) -> None:
    """Facts, scores with passports, ledger, pictures, provenance, settings."""
    cap, made = run.caps, table("", "")
    state = "finished" if run.finished else "unfinished"
    made.add_row("run", escape(f"{run.name} {run.fingerprint}, {state}, track {run.track}"))
    made.add_row("data", escape(str(run.data["name"])))
    made.add_row("parameters", f"{run.parameters:,} of < {cap['parameters']:,}")
    made.add_row("steps", f"{run.steps:,} of <= {cap['steps']:,}")
    made.add_row("test split", f"read {run.test_reads} times" if run.test_reads != 1 else "read once")
    for name, score in run.scores.items():
        for key, value in score.values.items():
            made.add_row(escape(f"{name} {key.replace('_', ' ')}"), in_words(key, value))
    for kind in ("samples", "interpolations", "strips"):
        for name, images in run.images(kind).items():
            size = " x ".join(map(str, images.shape))
            made.add_row(escape(f"{kind} {name}"), escape(f"{size}; {in_brief(images.attributes)}"))
    about = run.provenance
    machine = about.get("gpus") or [about.get("processor", "")]
    made.add_row("made", escape(f"{about.get('time', '')} by {about.get('user', '')} on {about.get('host', '')}"))
    made.add_row(
        "with", escape(f"{machine[0]}, torch {about.get('torch', '')}, hpcvision {about.get('hpcvision', '')}")
    )
    if commit := about.get("git_commit"):
        commits = list(dict.fromkeys(run.ledger.get("commit", ())))
        if len(commits) > 1:
            made.add_row("commits of the stays", escape(", ".join(commits)))
        made.add_row("commit", escape(f"{commit}{' with uncommitted changes' if about.get('git_dirty') else ''}"))
    made.add_row("digest", escape(run.digest))
    if run.reduced_from:
        made.add_row("reduced", escape(how_reduced(run)))
    made.show_header = False
    out.print(made)
    out.print()
    stays = table("stay", "job", "host", "processes", "from step", "to step", "ended", numbers=("from step", "to step"))
    for number, row in enumerate(run.ledger.to_dict("records"), start=1):
        words = (row["job_id"], row["host"], row["world_size"])
        stays.add_row(
            str(number),
            *(escape(str(word)) for word in words),
            f"{row['from_step']:,}",
            f"{row['to_step']:,}",
            escape(str(row["reason"])),
        )
    out.print(stays)
    out.print()
    settings = table("setting", "value")
    for key, value in flatten(run.settings).items():
        settings.add_row(escape(key), escape("none" if value is None else str(value)))
    out.print(settings)


def how_reduced(run: Run) -> str:
    """What a reduced copy says of itself."""
    with run.place.open() as group:
        bits = group.attrs["significant_bits"]
    return f"from {run.reduced_from}, whose scores these are; {run.headline} weights alone, of {bits} significant bits"


def in_brief(attributes: dict[str, Any]) -> str:
    """`ddim, 50 steps, ema weights`, and the rule of selected images."""
    words = [str(attributes.get("sampler", "")), f"{attributes.get('steps', '?')} steps"]
    words += [f"{attributes[key]} weights" for key in ("weights",) if key in attributes]
    words += [f"guidance {attributes['guidance_scale']:g}"] if attributes.get("guidance_scale", 1) != 1 else []
    return ", ".join(filter(None, [*words, str(attributes.get("rule", ""))]))


def print_sweep(sweep: Sweep, out: Console) -> None:
    """The best trials and the winner."""
    trials = sweep.trials.sort_values("objective", ascending=not sweep.larger_is_better, na_position="last")
    shown = ["label", "role", "status", "parameters", "steps", "objective"]
    keys = shown + [key for key in map(str, trials.columns) if "." in key]
    made = table(
        *(key.rpartition(".")[2].replace("_", " ") for key in keys), numbers=("parameters", "steps", "objective")
    )
    for row in trials.head(MOST_TRIALS).to_dict("records"):
        made.add_row(*(escape(in_a_cell(row[key])) for key in keys))
    keep_cells_whole(made, out.width)
    state = "finished" if sweep.finished else "unfinished"
    out.print(f"{escape(sweep.name)}: {len(trials)} runs, {state}, objective validation {escape(sweep.objective)}")
    out.print(made)
    if len(trials) > MOST_TRIALS:
        print(f"and {len(trials) - MOST_TRIALS} more; `hpcvision results export {sweep.path} --csv` has them all")
    if sweep.winner:
        run = sweep.run(sweep.winner)
        told = [
            f"{name} {key} {in_words(key, value)}"
            for name, score in run.scores.items()
            for key, value in score.values.items()
        ]
        out.print(f"winner: {escape(sweep.winner)}, {escape(', '.join(told))}", soft_wrap=True)


def in_a_cell(value: Any) -> str:
    """A number short, everything else as it is."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_comparison(one: Path, other: Path) -> None:
    """Settings that differ, curves at their ends, and scores, ranked where their passports are the same."""
    runs, out = [load(one), load(other)], console()
    flat = [flatten(run.settings) for run in runs]
    settings = table("setting", "A", "B")
    for key in sorted(flat[0].keys() | flat[1].keys()):
        values = [some.get(key) for some in flat]
        if values[0] != values[1] and not key.startswith("cadence."):
            settings.add_row(escape(key), *(escape("none" if value is None else str(value)) for value in values))
    for letter, run in zip("AB", runs, strict=True):
        out.print(escape(f"{letter}  {run.name} {run.fingerprint}  {run.path}"), soft_wrap=True)
    out.print()
    out.print(settings if settings.row_count else "no setting differs")
    out.print()
    facts = table("", "A", "B", numbers=("A", "B"))
    facts.add_row("parameters", *(f"{run.parameters:,}" for run in runs))
    for name, point in (("steps", "step"), ("training loss at the end", "loss"), ("training seconds", "seconds")):
        facts.add_row(
            name,
            *(
                in_a_cell(run.train[point].iloc[-1].item()) if len(run.train) and point in run.train else ""
                for run in runs
            ),
        )
    for name in ("loss", "accuracy"):
        points = [validation(run, name) for run in runs]
        common = sorted(points[0].keys() & points[1].keys())
        for step in sorted({*common[:: -(-len(common) // MOST_STEPS) or 1], *common[-1:]}):
            facts.add_row(f"validation {name} at step {step:,}", *(in_a_cell(values[step]) for values in points))
    out.print(facts)
    out.print()
    for name, score in runs[0].scores.items():
        print_ranked(name, score, list(runs[1].scores.values()), out)
    if not runs[0].scores or not runs[1].scores:
        out.print("one of the two has no scores: it has not finished")


def validation(run: Run, name: str) -> dict[int, float]:
    """Step -> a validation score of the headline's weights; empty where the run has no such score."""
    points = run.evaluate
    chosen = points[(points["split"] == "validation") & (points["weights"] == run.headline)]
    return dict(zip(chosen["step"].tolist(), chosen[name].tolist(), strict=True)) if name in points else {}


def print_ranked(name: str, score: Score, others: list[Score], out: Console) -> None:
    """A score of A beside the one of B that is most alike; ranked only when nothing of their passports differs."""
    alike = [other for other in others if other.main == score.main]
    if not alike:
        out.print(f"{escape(name)}: B has no such score")
        return
    other = min(alike, key=lambda item: len(score.differences(item)))
    differ = score.differences(other)
    out.print(f"{escape(name)}" + (f" and {escape(other.name)}" if other.name != name else ""))
    machines = score.machine() != other.machine()
    for key, value in score.values.items():
        if key in other.values and not (machines and key == "seconds_per_image"):
            words = f"  {key.replace('_', ' ')}: A {in_words(key, value)}, B {in_words(key, other.values[key])}"
            out.print(escape(words + ("" if differ else f"; {verdict(value, other.values[key])}")), soft_wrap=True)
    if differ:
        fields = "; ".join(f"{key} is {pair[0]!r} and {pair[1]!r}" for key, pair in differ.items())
        out.print(escape(f"  not ranked, as the passports differ: {fields}"), soft_wrap=True)


def verdict(one: Value, other: Value) -> str:
    """Which of two is better, as far as their intervals tell."""
    if math.isnan(one.mean) or math.isnan(other.mean):
        return "not ranked, as one is no number"
    if one.mean == other.mean:
        return "equal"
    better = "A" if (one.mean > other.mean) == one.higher_is_better else "B"
    if math.isnan(one.low) or math.isnan(other.low):
        return f"{better} is better, by a difference whose uncertainty is not known"
    return f"{better} is better" if one.beats(other) is not None else f"{better} is ahead, but the intervals meet"


def as_table(found: Run | Sweep, name: str | None) -> "pd.DataFrame":
    """One of the tables of an archive: the curves, the ledger, the trials, or one row of everything as `summary`."""
    import pandas as pd

    kind = "sweep" if isinstance(found, Sweep) else "run"
    name = name or TABLES[kind][0]
    if name not in TABLES[kind]:
        raise UserError(f"--table={name}: a {kind} has {', '.join(TABLES[kind])}")
    if isinstance(found, Run):
        return pd.DataFrame([summary_of(found)]) if name == "summary" else found.table(name)
    if name == "summary":
        return pd.DataFrame([summary_of(run) for run in found.runs()])
    chosen = found.trials if name == "trials" else found.rungs
    if chosen is None:
        raise UserError(f"{found.path} has no {name}: nothing was compared before the end")
    return chosen


def summary_of(run: Run) -> dict[str, Any]:
    """Facts, scores and settings of a run in one flat row."""
    facts = {key: getattr(run, key) for key in ("name", "fingerprint", "track", "finished", "parameters", "steps")}
    facts |= {"data": run.data["name"], "test_reads": run.test_reads, "digest": run.digest}
    if run.reduced_from:
        facts["reduced"] = how_reduced(run)
    for name, score in run.scores.items():
        for key, value in score.values.items():
            facts |= {f"{name}_{key}": value.mean, f"{name}_{key}_low": value.low, f"{name}_{key}_high": value.high}
    settings = flatten(run.settings)
    return facts | {key: json.dumps(value) if isinstance(value, list) else value for key, value in settings.items()}


def export(path: Path, form: Form, *, name: str | None = None, output: Path | None = None) -> str:
    """A table of an archive as text, or written to `output`; what to print then."""
    if output is not None and output.suffix == ".h5":
        raise UserError(f"--output={output} would be taken for an archive; choose another name")
    frame = as_table(opened(path), name)
    if form == "parquet":
        if output is None:
            raise UserError("--parquet needs a file; give one with --output")
        with atomic_write(output) as file:
            frame.to_parquet(file, index=False)
        return str(output)
    match form:
        case "csv":
            text = frame.to_csv(index=False)
        case "json":
            known = frame.astype(object).where(frame.notna(), None)
            text = json.dumps(known.to_dict("records"), indent=1) + "\n"
        case "markdown":
            text = markdown(frame)
    if output is None:
        return text.rstrip("\n")
    with atomic_write(output) as file:
        file.write(text.encode())
    return str(output)


def markdown(frame: "pd.DataFrame") -> str:
    """A table for a text; bars and line ends in cells are written so that they stay there."""

    def cell(value: Any) -> str:
        words = in_a_cell(value) if isinstance(value, float) else str(value)
        return words.replace("|", "\\|").replace("\n", " ")

    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns), *frame.to_numpy(dtype=object).tolist()]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)
