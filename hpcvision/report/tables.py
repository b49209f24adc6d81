"""Tables for a terminal: jobs, models, one job in full, data sets, runs."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpcvision.config import CAPS, MODEL_CONFIGS, RunConfig, flatten
from hpcvision.config.catalogue import load_job, names

if TYPE_CHECKING:
    from hpcvision import verify
    from hpcvision.launch.finding import Finding
    from hpcvision.launch.status import Status
    from hpcvision.results.reader import Summary


def table(*columns: str, numbers: tuple[str, ...] = (), title: str | None = None) -> Table:
    """A plain table; `numbers` are aligned to the right."""
    made = Table(box=None, title=title, title_justify="left", pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def keep_cells_whole(made: Table, width: int) -> None:
    """In a narrow terminal the headings are folded, not the cells below them; call it when all rows are there."""
    words = [max(map(len, str(column.header).split())) for column in made.columns]
    widths = [max(map(len, map(str, column.cells)), default=0) for column in made.columns]
    for _ in range(width - sum(widths) - 2 * (len(widths) - 1)):  # two blanks between columns
        most = max(range(len(widths)), key=lambda index: words[index] - widths[index])
        widths[most] += words[most] > widths[most]
    for column, wide in zip(made.columns, widths, strict=True):
        column.width = wide


def console() -> Console:
    """Standard output; in a pipe or a file lines are not cut to 80 columns."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=200)


def print_jobs() -> None:
    """Every job with its track, task, model, source of data, steps and batch."""
    rows = table("job", "track", "task", "model", "data.source", "steps", "batch", numbers=("steps", "batch"))
    for name in names("jobs"):
        config = load_job(name)
        train = config.train
        rows.add_row(
            name,
            config.track,
            config.task.kind,
            config.model.kind,
            config.data.source,
            f"{train.steps:,}",
            str(train.global_batch_size),
        )
    console().print(rows)


def print_models() -> None:
    """Every model with its cost at width 1."""
    from hpcvision.models.counting import multiply_adds, parameters_of, widest_below

    rows = table(
        "model", "parameters", "cap", "multiply-adds", "widest", "input", numbers=("parameters", "cap", "multiply-adds")
    )
    for kind in MODEL_CONFIGS:
        config: Any = kind()
        cap = CAPS[task_of(config)].parameters
        side = f"{config.image_size}x{config.image_size}x3, {config.num_classes} classes"
        widest = f"{widest_below(config, cap):g}"
        rows.add_row(config.kind, f"{parameters_of(config):,}", f"{cap:,}", f"{multiply_adds(config):,}", widest, side)
    console().print(rows)


def task_of(model: Any) -> str:
    """The task that a model is for."""
    from hpcvision.config.models import DenoiserConfig

    return "diffuse" if isinstance(model, DenoiserConfig) else "classify"


def print_job(config: RunConfig) -> None:
    """Settings, cost against the cap, layers and fingerprint of one job."""
    from hpcvision.models.counting import layer_table, multiply_adds, parameters_of

    out = console()
    settings = table("setting", "value")
    for key, value in flatten(config.model_dump(mode="json")).items():
        settings.add_row(key, "none" if value is None else str(value))
    out.print(settings)
    out.print()
    layers = layer_table(config.model)
    shares = any(layer.share_of_standard for layer in layers)
    columns = ["layer", "kind", "output", "parameters", "multiply-adds"] + (["of standard conv"] if shares else [])
    rows = table(*columns, numbers=("parameters", "multiply-adds", "of standard conv"))
    for layer in layers:
        size = "x".join(map(str, layer.output))
        cells = [layer.name, layer.kind, size, f"{layer.parameters:,}", f"{layer.multiply_adds:,}"]
        if shares:
            cells.append(f"{100 * layer.share_of_standard:.1f} %" if layer.share_of_standard else "")
        rows.add_row(*cells)
    out.print(rows)
    out.print()
    parameters, cap = parameters_of(config.model), CAPS[config.task.kind]
    if config.track == "auxiliary":
        verdict = "auxiliary: no cap, no claim"
    elif parameters < cap.parameters:
        verdict = f"{100 * parameters / cap.parameters:.1f} % of the cap of {cap.parameters:,}"
    else:
        verdict = f"OVER the cap of {cap.parameters:,}"
    out.print(f"parameters     {parameters:,} ({verdict})")
    out.print(f"multiply-adds  {multiply_adds(config.model):,} per image")
    out.print(f"steps          {config.train.steps:,} of at most {cap.steps:,}")
    out.print(f"fingerprint    {config.fingerprint}")
    out.print(f"run folder     {config.folder_name}")


def print_data_status(name: str | None) -> None:
    """Which data sets are there, with their images per split; of a single one also its folder and what is missing."""
    from hpcvision import data

    rows = table("data", "name", "training + validation + test images")
    for source in [name] if name else list(data.DATASETS):
        facts = data.status(source)
        counts = facts["counts"].values()
        lacking = "missing" if facts["missing"] else "not prepared"
        state = " + ".join(f"{count:,}" for count in counts) if counts else f"{lacking}: {facts['fetch']}"
        rows.add_row(source, facts["description"], state)
    console().print(rows)
    if name and facts["folder"]:
        print(f"folder: {facts['folder']}")
    if name and facts["missing"]:
        print(f"missing: {', '.join(map(str, facts['missing']))}")


def score_in_brief(summary: "Summary") -> str:
    """The headline score for a column of a table."""
    if "accuracy" in summary.scores:
        low, value, high = (100 * summary.scores[f"accuracy{end}"] for end in ("_low", "", "_high"))
        return f"{summary.scored_split} {value:.2f} % ({low:.1f} to {high:.1f})"
    return f"{summary.scored_split} loss {summary.scores['loss']:.4f}" if "loss" in summary.scores else ""


def scores_in_words(summary: "Summary") -> str:
    """The headline score of a finished run with its uncertainty."""
    scores, split = summary.scores, summary.scored_split
    if "accuracy" in scores:
        low, high = scores["accuracy_low"], scores["accuracy_high"]
        return (
            f"{split} accuracy {100 * scores['accuracy']:.2f} % "
            f"(95 % interval {100 * low:.2f} to {100 * high:.2f}; "
            f"{scores['accuracy']:.3f} ± {scores['accuracy_batch_deviation']:.3f} over batches)"
        )
    return f"{split} denoising loss {scores['loss']:.4f}" if "loss" in scores else ""


def print_scores(archive: Path) -> None:
    """A row for every score of generated images in an archive: mean ± standard deviation over the sets of seeds."""
    from hpcvision.results.reader import read_scores

    scores = read_scores(archive).values()
    numbers = ("distance", "kernel", "recall", "agreement", "ms/image")
    made = table("features", "against", "weights", "sampler", "steps", *numbers, numbers=numbers)
    for facts in scores:
        distance = next(name for name in facts if name in ("fid", "frechet") or name.startswith("frechet_inception"))
        guided = f" x{facts['guidance_scale']:g}" if facts["guidance_scale"] != 1 else ""
        made.add_row(
            facts["extractor"],
            facts["reference"],
            facts["weights"],
            facts["sampler"] + guided,
            str(facts["steps"]),
            with_deviation(facts, distance, 3),
            with_deviation(facts, "kernel_distance", 4),
            with_deviation(facts, "recall", 3),
            with_deviation(facts, "classifier_agreement", 3),
            f"{1000 * facts['seconds_per_image']:.2f}",
        )
    console().print(made)
    for extractor in sorted({facts["extractor"] for facts in scores}):
        known = "an FID" if extractor == "inception_v3" else "no FID"
        print(f"Fréchet distance on the features of {extractor}: {known}.")


def with_deviation(facts: dict[str, Any], name: str, digits: int) -> str:
    """`1.234 ± 0.012`, without the deviation when there was one set; nothing when there is no such value."""
    if name not in facts:
        return ""
    deviation = facts[f"{name}_deviation"]
    return f"{facts[name]:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")


def print_findings(findings: "Iterable[Finding | verify.Finding]") -> bool:
    """One line per finding, as it comes; True when one of them is a FAIL."""
    colours, failed = {"PASS": "green", "WARN": "yellow", "SKIP": "yellow", "FAIL": "red"}, False
    out = console()
    for finding in findings:
        colour = colours[finding.verdict]
        out.print(
            f"[{colour}]{finding.verdict}[/]  {escape(finding.subject):<10}  {escape(finding.words)}", soft_wrap=True
        )
        failed |= finding.verdict == "FAIL"
    return failed


def print_statuses(statuses: list["Status"]) -> None:
    """One row per run or sweep: how it is doing, in words."""
    rows = table("run", "state", "step", "job", "", numbers=("step",))
    for status in statuses:
        steps = f"{status.step:,}/{status.steps:,}" if status.steps else ""
        rows.add_row(escape(status.rundir.folder.name), status.state, steps, status.job, escape(status.words))
    console().print(rows)
