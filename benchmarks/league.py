"""Writes RESULTS.md from the archives in results/ and the peers' figures in results/tables.toml: `make results`.

What is ours is read from the archives and nowhere else. A job without archives is a row that says "not run".
"""

import argparse
import hashlib
import json
import math
import statistics
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcvision.report.again import training_command
from hpcvision.report.archive import how_reduced
from hpcvision.results import Run, load
from hpcvision.results.scores import Score

ROOT = Path(__file__).parents[1]
HEAD = ("", "score", "parameters", "steps", "batch", "images seen", "time a seed", "hardware", "source")
MUST_AGREE = ("extractor_sha256", "reference_sha256", "resize", "pixel_dtype", "images", "sets_of_seeds")
INTRODUCTION = """\
# Results

Written by `make results` from the archives in `results/`, whose SHA-256 stand below; not by hand. All rows of ours: one
read of the test split, at the last step, with weights that were chosen before training; mean ± standard deviation where
there are several seeds, else the 95 % interval; time is the median of the seeds. Generators read the test split once
more for the distance of their images, and ± is over sets of images where there is one seed. `hpcvision results verify
--scores FILE` computes a row's score again.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; end with 1 where RESULTS.md is another.")
    asked = parser.parse_args()
    path, text = ROOT / "RESULTS.md", page()
    if not asked.check:
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        sys.exit("RESULTS.md is not what the archives in results/ give; run `make results`")


def page() -> str:
    """The text of RESULTS.md."""
    runs = [load(path) for path in sorted((ROOT / "results").glob("*.h5"))]
    for run in runs:
        check(run)
    tables = tomllib.loads((ROOT / "results/tables.toml").read_text())["table"]
    unknown = {run.name for run in runs} - {job for table in tables for job in table["jobs"]}
    assert not unknown, f"no table of results/tables.toml has {unknown}"
    parts = [INTRODUCTION]
    for table in tables:
        parts.append(f"## {table['title']}\n\n{prose(table)}\n\n{grid(HEAD, rows_of(table, runs), table['score'])}\n")
    return "\n".join([*parts, archives(runs)])


def rows_of(table: dict[str, Any], runs: list[Run]) -> list[tuple[str, ...]]:
    """Our rows and the others' of one table."""
    own = {job: [run for run in runs if run.name == job] for job in table["jobs"]}
    scores: Callable[[list[Run]], list[str]] = accuracy
    if "distance" in table:
        scores = Distances(table["distance"], own[table["against"]])
    rows = [row for job, found in own.items() for row in ours(job, found, scores)]
    return rows + [peer(found) for found in table.get("peer", [])]


def is_generator(run: Run) -> bool:
    """Whether it draws images: the test split is read for its loss, and once more for the distance of its images."""
    return bool(run.settings["task"]["kind"] == "diffuse")


def check(run: Run) -> None:
    """End with a line where an archive does not hold a claim."""
    commits = set(run.ledger.get("commit", []))
    faults = {
        "is not finished": not run.finished,
        "is of the auxiliary track": run.track != "capped",
        f"has read the test split {run.test_reads} times": run.test_reads != (2 if is_generator(run) else 1),
        "is larger than 3 MB (`hpcvision results reduce` makes it smaller)": run.path.stat().st_size > 3_000_000,
        "has uncommitted changes": bool(run.provenance.get("git_dirty")) or any("+" in name for name in commits),
        f"was trained by code of {len(commits)} commits": len(commits) > 1,
    }
    for words, is_so in faults.items():
        if is_so:
            sys.exit(f"{run.path} {words}; it cannot stand in RESULTS.md")


def ours(job: str, runs: list[Run], scores: Callable[[list[Run]], list[str]]) -> list[tuple[str, ...]]:
    """The rows of each group of runs that differ in nothing but the seed; "not run" without any."""
    if not runs:
        return [(f"**{job}**", "not run", *("",) * (len(HEAD) - 2))]
    return [row(job, group, score) for group in by_settings(runs) for score in scores(group)]


def by_settings(runs: list[Run]) -> list[list[Run]]:
    """Groups of runs that differ in nothing but the seed."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in run.settings.items() if key != "seed"}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return list(groups.values())


def row(job: str, runs: list[Run], score: str) -> tuple[str, ...]:
    """What seeds of one configuration have reached."""
    run = runs[0]
    batch = run.settings["train"]["global_batch_size"]
    seconds = statistics.median(float(run.train["seconds"].iloc[-1]) for run in runs)
    return (
        f"**{job}**",
        f"**{score}**",
        f"{run.parameters:,}",
        f"{run.steps:,}",
        f"{batch:,}",
        f"{run.steps * batch / 1e6:.1f} million",
        f"{seconds / 60:.0f} min",
        ", ".join(sorted({hardware(run) for run in runs})),
        "below",
    )


def accuracy(runs: list[Run]) -> list[str]:
    """Mean and standard deviation over the seeds, or the interval of the only one."""
    values = [run.scores["test"].values["accuracy"] for run in runs]
    percent = [100 * value.mean for value in values]
    if len(runs) == 1:
        return [f"{percent[0]:.2f} ({100 * values[0].low:.2f} to {100 * values[0].high:.2f}), 1 seed"]
    return [f"{statistics.mean(percent):.2f} ± {statistics.stdev(percent):.2f}, {len(runs)} seeds"]


class Distances:
    """Fréchet distances of drawn images to the test images, in those of another job at as many evaluations an image."""

    def __init__(self, extractor: str, others: list[Run]) -> None:
        self.extractor = extractor
        if len(by_settings(others)) > 1:
            sys.exit(f"{others[0].path} and others of that job differ in more than the seed; keep those of one")
        self.others = self.by_evaluations(others)

    def __call__(self, runs: list[Run]) -> list[str]:
        """A score for each number of evaluations that the runs have; alone where the other job has none for it."""
        words = []
        for evaluations, scores in self.by_evaluations(runs).items():
            others = self.others.get(evaluations, [])
            for key in MUST_AGREE:
                if len({score.passport.get(key) for score in (*scores, *others)}) > 1:
                    sys.exit(f"{runs[0].path}: {key} is not the same in all scores it stands with; evaluate all alike")
            mean, deviation = over_seeds(scores)
            around = "" if math.isnan(deviation) else f" ± {deviation:.4f}"
            alone = f"{mean:.4f}{around}, {evaluations} evaluations an image"
            ratio = f"{mean / over_seeds(others)[0]:.2f} ({alone})" if others else f"{alone}, nothing to compare with"
            words.append(f"{ratio}, {len(scores)} seed{'s' * (len(scores) > 1)}")
        return words

    def by_evaluations(self, runs: list[Run]) -> dict[int, list[Score]]:
        """Network evaluations an image -> the score of each run; guidance takes two a step."""
        found: dict[int, list[Score]] = {}
        for run in runs:
            count = 0
            for score in run.scores.values():
                about = score.passport
                of_what = (about.get("extractor"), about.get("reference"), about.get("weights"))
                # How many evaluations guidance in an interval takes is not in the archive.
                if of_what == (self.extractor, "test", run.headline) and not about.get("guidance_interval"):
                    found.setdefault(int(about["steps"]) * (1 if about["guidance_scale"] == 1 else 2), []).append(score)
                    count += 1
            if not count:
                sys.exit(f"{run.path} has no distance on {self.extractor}; `hpcvision evaluate` computes it")
        if any(len(scores) != len(runs) for scores in found.values()):
            sys.exit(f"{runs[0].path} and its other seeds need one score each for the same numbers of evaluations")
        return dict(sorted(found.items()))


def over_seeds(scores: list[Score]) -> tuple[float, float]:
    """Mean and standard deviation of the distances over runs, of one run over its sets of images; NaN of one set."""
    values = [score.values[score.main] for score in scores]
    if len(values) == 1:
        return values[0].mean, values[0].high - values[0].mean
    return statistics.mean(value.mean for value in values), statistics.stdev(value.mean for value in values)


def hardware(run: Run) -> str:
    """What the run was trained on."""
    about = run.provenance
    gpus = about["gpus"]
    return f"{len(gpus)} x {gpus[0]}" if gpus else f"{about['cpus_allowed']} cores, {about['processor']}"


def peer(found: dict[str, Any]) -> tuple[str, ...]:
    """Somebody else's figure."""
    keys = ("what", "score", "parameters", "steps", "batch", "images_seen", "time", "hardware", "source")
    return tuple(found.get(key, "") for key in keys)


def archives(runs: list[Run]) -> str:
    """Each archive with its command and hash."""
    lines = ["## Archives behind these rows", ""]
    for run in runs:
        reached = "" if is_generator(run) else f"{100 * run.scores['test'].values['accuracy'].mean:.2f} %, "
        packages = f"torch {run.provenance['torch']}, Python {run.provenance['python']}"
        reduced = f"; reduced {how_reduced(run)}" if run.reduced_from else ""
        lines += [
            f"- `results/{run.path.name}`: {reached}{run.headline} weights, {run.data['name']}; {packages}; "
            f"commit {str(run.provenance['git_commit'])[:12]}{reduced}  ",
            f"  `{training_command(run)}`  ",
            f"  SHA-256 {hashlib.sha256(run.path.read_bytes()).hexdigest()}",
        ]
    return "\n".join(lines) + "\n"


def prose(table: dict[str, Any]) -> str:
    """What is compared, and the goal."""
    return f"{table.get('note', '').strip()}\nGoal: {table['goal']}.".strip()


def grid(head: tuple[str, ...], rows: list[tuple[str, ...]], name: str) -> str:
    """A table of Markdown; `name` says what the scores are."""
    lines = [name if word == "score" else word for word in head], ["---", "---", *["---:"] * 5, "---", "---"], *rows
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
