"""The commands that make a run or a sweep again, as far as its archive and the shipped jobs tell."""

import shlex
from typing import Any

from hpcvision.config import apply, differences, parse, unparse
from hpcvision.config.catalogue import load_job, names
from hpcvision.errors import UserError
from hpcvision.results import Run, Sweep


def checked_out(about: dict[str, Any]) -> list[str]:
    """The line that fetches the code of a run."""
    commit = about.get("git_commit")
    changed = "  # and the uncommitted changes, below" if about.get("git_dirty") else ""
    return [f"git checkout {shlex.quote(str(commit))}{changed}"] if commit else []


def training_command(run: Run) -> str:
    """`hpcvision train JOB key=value ...`, which was seen to give the run's fingerprint; else a remark."""
    try:
        config = run.config
        if config.name not in names("jobs"):
            return "# of a job file of its own; its settings are below"
        base, words = load_job(config.name), {}
        for part in ("model", "task"):  # another kind has other settings
            kind = getattr(config, part).kind
            if getattr(base, part).kind != kind:
                words[f"{part}.kind"] = kind
        words |= {key: new for key, (_, new) in differences(apply(base, words), config).items()}
        said = unparse(words)
        if apply(base, parse(said)).fingerprint == run.fingerprint:
            return shlex.join(["hpcvision", "train", config.name, *said])
    except UserError as error:
        return "# " + " ".join(str(error).split())
    return f"# the job {config.name} is another one today; the settings are below"


def sweep_command(sweep: Sweep) -> str:
    """`hpcvision sweep NAME key=value ... --trials N`, or a remark on where the trials are from."""
    if sweep.search == "merged":
        return "# merged from several archives"
    if sweep.name not in names("sweeps"):
        return f"# of a sweep file of its own, {' '.join(sweep.name.split())}.py"
    if sweep.given is None:
        return f"{shlex.join(['hpcvision', 'sweep', sweep.name])}  # and what it was given, which is not recorded"
    try:
        return shlex.join(["hpcvision", "sweep", sweep.name, *shlex.split(sweep.given)])
    except ValueError as error:  # an unclosed quote
        return f"# what the sweep {sweep.name} was given cannot be read: {error}"
