"""Where and with what a run was made: code, packages, machine, device, queue."""

import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import hpcvision

# As JSON, where a letter may take 6 characters; an attribute of an HDF5 file may have 64 kB, and packages take some.
LONGEST_DIFF = 30_000
# What the numbers of a run are made by; the rest starts it, or looks at it.
COMPUTES = ("config", "data", "diffusion", "metrics", "models", "training")
IMPORTS = re.compile(r"^from hpcvision\.((?:models|diffusion)[\w.]*) import", re.MULTILINE)


def git_commit() -> dict[str, Any]:
    """Commit, dirty flag and uncommitted changes of the checkout that hpcvision runs from; empty outside a checkout."""
    root = Path(hpcvision.__file__).parent.parent
    if not (root / ".git").exists():
        return {}

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        changes, names = git("diff", "HEAD"), git("status", "--porcelain")
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_repository": address(git("config", "--get", "remote.origin.url")),
            "git_dirty": bool(names),
            "git_changes": hashlib.sha256(f"{changes}\n{names}".encode()).hexdigest()[:8] if names else "",
            "git_diff": changes if len(json.dumps(changes)) <= LONGEST_DIFF else changes[: LONGEST_DIFF // 6] + "[cut]",
        }
    except (OSError, subprocess.TimeoutExpired):
        return {}


def address(remote: str) -> str:
    """Where others find the code, without the password or token that it may hold; empty for a folder."""
    is_of_the_net = re.match(r"(https?|ssh|git)://|[^/]+@[^/]+:", remote)
    return re.sub(r"^(https?://)[^/]*@|:[^/@]*(?=@)", r"\1", remote) if is_of_the_net else ""


@cache
def files() -> dict[str, str]:
    """The code that computes, as it was at the first call: paths below the package, and their text."""
    root = Path(hpcvision.__file__).parent
    paths = sorted(path for folder in COMPUTES for path in (root / folder).rglob("*.py"))
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}


def code() -> str:
    """12 digits of the SHA-256 of the code that computes, whether it was committed, is new, or was installed."""
    return hashlib.sha256(json.dumps(files()).encode()).hexdigest()[:12]


def trained_by_other_code(journal: list[dict[str, Any]]) -> str:
    """Words for the code that the last stay of a run began with; empty when it is this one, or not known."""
    starts = [event for event in journal if event["event"] == "start"]
    last = starts[-1] if starts else {}
    if last.get("code", code()) == code():
        return ""
    return f"other code than now ({last['commit'][:12]})" if last.get("commit") else "other code than now"


def source_of(*modules: str) -> dict[str, str]:
    """Path and text of these modules, such as `models.layers`, and of what they import of `models` and `diffusion`."""
    found: dict[str, str] = {}
    left = list(modules)
    while left:
        name = left.pop().replace(".", "/")
        path = f"{name}.py" if f"{name}.py" in files() else f"{name}/__init__.py"
        if path in files() and path not in found:
            found[path] = files()[path]
            left += IMPORTS.findall(found[path])
    return dict(sorted(found.items()))


def commit_in_words(collected: dict[str, Any]) -> str:
    """The commit, and `+` with digits that tell uncommitted changes apart where there are any; empty if not known.

    They are of the whole diff and of the names of new files, whose content is not looked at.
    """
    commit, changes = collected.get("git_commit", ""), collected.get("git_changes", "")
    return f"{commit}+{changes}" if changes else str(commit)


def user() -> str:
    """Name of the user, or the number where a container knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def processor() -> str:
    """Marketing name of the CPU, or the architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def collect() -> dict[str, Any]:
    """A JSON-ready record of this process's surroundings."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "hpcvision": hpcvision.__version__,
        **git_commit(),
        "code": code(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "user": user(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "slurm": {key: value for key, value in sorted(os.environ.items()) if key.startswith("SLURM_JOB")},
        "packages": packages(),
    }


@cache
def packages() -> list[str]:
    """What is installed, such as `torch==2.15.0`.

    Read once, and of each description two lines only: to parse all of it took 0.16 s of every run's start.
    """
    found = set()
    for item in importlib.metadata.distributions():
        header = (item.read_text("METADATA") or item.read_text("PKG-INFO") or item.read_text("") or "").partition(
            "\n\n"
        )[0]
        facts = dict(line.split(": ", 1) for line in header.splitlines() if line.startswith(("Name: ", "Version: ")))
        if len(facts) == 2:
            found.add(f"{facts['Name']}=={facts['Version']}")
    return sorted(found, key=str.lower)
