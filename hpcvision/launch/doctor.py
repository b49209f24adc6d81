"""What would go wrong on a cluster, found on its login node before a job waits for it."""

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from hpcvision.errors import UserError
from hpcvision.launch import queue
from hpcvision.launch.batch import Placement, options, script
from hpcvision.launch.profile import Profile
from hpcvision.rundir import data_folder

Verdict = Literal["PASS", "WARN", "FAIL"]
SHARED_DISKS = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "panfs", "wekafs", "afs", "cifs", "smb", "9p", "fuse")
SETUP_SECONDS = 10.0
LEAST_GB, LEAST_FILES = 5.0, 10_000  # a run takes 2 to 20 MB and a dozen files

PROBE_SECONDS = 5
# Major CUDA version -> oldest driver that runs it (NVIDIA's table of minor version compatibility).
LEAST_DRIVERS = {"11": 450, "12": 525, "13": 580}

# Compute capabilities of the cards by what sites call them in GRES names.
CAPABILITIES = {
    "pascal": 60, "p100": 60, "1080": 61, "titanx": 61, "p40": 61, "volta": 70, "v100": 70, "titanv": 70,
    "turing": 75, "t4": 75, "2080": 75, "rtx6000": 75, "rtx8000": 75, "ampere": 80, "a100": 80, "a30": 80, "a40": 86,
    "a10": 86, "3090": 86, "3080": 86, "a5000": 86, "a6000": 86, "ada": 89, "l4": 89, "l40": 89, "4090": 89,
    "hopper": 90, "h100": 90, "h200": 90, "gh200": 90, "blackwell": 100, "b100": 100, "b200": 100, "5090": 120,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    verdict: Verdict
    subject: str
    words: str
    """What was found and, unless it is well, the command or the change that mends it."""


def examine(profile: Profile, runs: Path) -> Iterator[Finding]:
    """All findings, as they come."""
    if profile.executor == "slurm":
        try:
            queue.check_there("scontrol")
        except UserError as error:
            yield Finding("FAIL", "slurm", str(error))
        else:
            yield from slurm(profile)
            yield setup_lines(profile)
            yield from graphics_cards(profile)
            if profile.gpus_per_node:
                yield driver(profile, Placement(profile.nodes, profile.tasks_per_node, profile.gpus_per_node, 1))
            yield shared(runs, profile)
    yield room(runs)
    yield from staged(profile)


def slurm(profile: Profile) -> Iterator[Finding]:
    """Commands, accounting, account, partition, limits, and what sbatch would say."""
    from hpcvision.launch.slurm import check_account, check_place

    try:
        config = queue.settings()
    except UserError as error:
        yield Finding("FAIL", "slurm", str(error))
        return
    yield Finding("PASS", "slurm", f"{config.get('SLURM_VERSION', '')} on {config.get('ClusterName', '')}")
    if shutil.which("sacct") and queue.ask("sacct", "--noheader").returncode == 0:
        yield Finding("PASS", "accounting", "sacct answers")
    else:
        yield Finding("WARN", "accounting", "sacct does not answer: why a job died is known for a few minutes only")
    place = Placement(profile.nodes, profile.tasks_per_node, profile.gpus_per_node, profile.time_limit_minutes)
    checks = {"account": partial(check_account, profile), "partition": partial(check_place, profile, place)}
    for subject, check in checks.items():
        try:
            check()
        except UserError as error:
            yield Finding("FAIL", subject, f"{error}; change it in the profile")
        else:
            yield Finding("PASS", subject, getattr(profile, subject) or "the site's default")
    largest = int(config.get("MaxArraySize", "1001")) - 1
    if profile.max_array_size > largest:
        yield Finding("FAIL", "arrays", f"the cluster takes {largest} tasks; set max_array_size = {largest}")
    else:
        yield Finding("PASS", "arrays", f"up to {profile.max_array_size} of the cluster's {largest} tasks")
    words = "unfinished runs queue themselves again" if profile.requeue else "off: submit with --chain N"
    yield Finding("PASS", "requeue", words)
    try:
        text = script("doctor", profile, place, ["true"], log="/dev/null")
        said = queue.test_only(text, profile.submit_command)
    except UserError as error:
        yield Finding("FAIL", "sbatch", f"{error}; compare the profile with a batch script that works here")
    else:
        yield Finding("PASS", "sbatch", said)


def setup_lines(profile: Profile) -> Finding:
    """Whether the profile's lines run, and Python then has hpcvision."""
    import sys

    python = profile.python or shlex.quote(sys.executable)
    text = "\n".join([*profile.setup, f"{python} -c 'import hpcvision'"])
    try:
        done = subprocess.run(
            ["bash", "-e", "-c", text], capture_output=True, text=True, timeout=SETUP_SECONDS, env=queue.outside()
        )
    except subprocess.TimeoutExpired:
        return Finding("WARN", "setup", f"its lines took more than {SETUP_SECONDS:.0f} s on this machine")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return Finding("FAIL", "setup", f"{last}; mend the lines of setup, or python, in the profile")
    return Finding("PASS", "setup", f"{len(profile.setup)} line(s), then {python} with hpcvision")


def graphics_cards(profile: Profile) -> Iterator[Finding]:
    """The partition's cards against the kernels of the installed torch; the machine kind against the nodes'."""
    answer = queue.ask("scontrol", "show", "node", "--oneliner")
    kinds = {word.partition("=")[2] for word in answer.stdout.split() if word.startswith("Arch=")}
    if kinds and platform.machine() not in kinds:
        words = f"the nodes are {', '.join(sorted(kinds))}, this machine is {platform.machine()}"
        yield Finding("FAIL", "machines", f"{words}; install hpcvision on a node and set python in the profile")
    if not profile.gpus_per_node:
        yield Finding("PASS", "gpus", "none asked for")
        return
    types = sorted({kind for kind, _ in queue.gpus_of_nodes(profile.partition)})
    if profile.gpu_type:
        types = [profile.gpu_type]
    built = kernels()
    index = profile.torch_index or "https://download.pytorch.org/whl/cu126"
    remedy = f"pip install --index-url {index} torch torchvision"
    if not built:
        yield Finding("FAIL", "gpus", f"the installed torch has no kernels for GPUs; {remedy}")
        return
    for kind in types or [""]:
        names = [name for name in CAPABILITIES if name in kind.lower().replace("_", "")]
        capability = CAPABILITIES[max(names, key=len)] if names else 0  # a100 has a10 in it
        if not capability:
            yield Finding(
                "WARN", "gpus", f"{kind or 'the GPUs'}: of unknown kind; look with: srun --gres=gpu:1 nvidia-smi"
            )
        elif not runs_on(capability, built):
            yield Finding("FAIL", "gpus", f"{kind} has no kernels in this torch (oldest: {min(built)}); {remedy}")
        else:
            native = "" if capability >= 80 else "; no native bf16: use train.precision=fp16 or fp32"
            yield Finding("PASS", "gpus", f"{kind}: compute capability {capability / 10:g} is in this torch{native}")


def driver(profile: Profile, place: Placement) -> Finding:
    """The driver of a node's card against the CUDA of the installed torch, if a card is free at once."""
    import torch

    asked = options("doctor", profile, replace(place, nodes=1, tasks_per_node=1, gpus_per_node=1, minutes=1))
    flags = [f"--{key}={value}" for key, value in asked.items() if value and key not in ("signal", "open-mode")]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    look = "look with: srun --gres=gpu:1 nvidia-smi"
    try:
        answer = queue.ask("srun", f"--immediate={PROBE_SECONDS}", *flags, *query)
    except UserError as error:
        return Finding("WARN", "driver", f"{error}; {look}")
    version = (answer.stdout.split() or [""])[0]
    if answer.returncode or not version[:1].isdigit():
        said = [line for line in answer.stderr.splitlines() if "Exited with exit code" not in line] or ["no words"]
        # Slurm's words for a job that cannot start at once.
        busy = re.search("nodes are busy|mmediate", answer.stderr)
        why = f"no card was free within {PROBE_SECONDS} s" if busy else f"not known ({said[-1]})"
        return Finding("WARN", "driver", f"{why}; {look}")
    cuda = torch.version.cuda or ""
    least = LEAST_DRIVERS.get(cuda.partition(".")[0], 0)
    if int(version.partition(".")[0]) < least:
        index = profile.torch_index or "https://download.pytorch.org/whl/cu126"
        words = f"{version} is too old for this torch's CUDA {cuda}, which needs {least}"
        return Finding("FAIL", "driver", f"{words}; pip install --index-url {index} torch torchvision")
    return Finding("PASS", "driver", f"{version} runs this torch's CUDA {cuda}")


def kernels() -> list[int]:
    """Compute capabilities times ten that the installed torch has kernels for; empty for a build without CUDA."""
    import torch

    if torch.version.cuda is None:
        return []
    flags: str = torch._C._cuda_getArchFlags() or ""
    digits = ["".join(filter(str.isdigit, flag)) for flag in flags.split() if flag.startswith("sm_")]
    return sorted({int(text) for text in digits})


def runs_on(capability: int, built: list[int]) -> bool:
    """Kernels run on cards of the same major version and at least the same minor one."""
    return any(capability // 10 == one // 10 and capability >= one for one in built)


def shared(runs: Path, profile: Profile) -> Finding:
    """Whether the nodes see the folder of runs."""
    from hpcvision.launch.slurm import check_shared

    try:
        check_shared(runs, profile)
    except UserError as error:
        return Finding("FAIL", "runs", f"{error} with --runs or $HPCVISION_RUNS")
    kind = disk_of(runs)
    if kind.startswith(SHARED_DISKS):
        return Finding("PASS", "runs", f"{runs.absolute()} is on {kind}")
    return Finding("WARN", "runs", f"{runs.absolute()} is on {kind}, perhaps this machine's own; see: srun ls {runs}")


def disk_of(path: Path) -> str:
    """The kind of file system that holds a path, such as nfs4."""
    here = path.resolve()
    best, kind = "", "an unknown disk"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, name, *_ = line.split()
        place = place.replace("\\040", " ")
        if here.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, name
    return kind


def room(runs: Path) -> Finding:
    """Free space and free files where the runs go; the quota where the site tells it."""
    there = runs.absolute()
    while not there.exists():
        there = there.parent
    status = os.statvfs(there)
    free, files = status.f_bavail * status.f_frsize / 1e9, status.f_favail
    words = f"{free:,.0f} GB" + (f" and {files:,} files" if status.f_files else "") + f" free in {there}"
    over = quota()
    if over:
        return Finding("FAIL", "disk", f"{over}; remove what you do not need, or choose another --runs")
    if free < LEAST_GB or (status.f_files and files < LEAST_FILES):
        return Finding("WARN", "disk", f"only {words}; a run takes 2 to 20 MB and a dozen files")
    return Finding("PASS", "disk", words)


def quota() -> str:
    """Which limit of the user's is exceeded, in words, or nothing; quota ends with 1 then."""
    if shutil.which("quota") is None:
        return ""
    try:
        done = subprocess.run(["quota", "-q"], capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return ""
    return " ".join(done.stdout.split()) if done.returncode == 1 else ""


def staged(profile: Profile) -> Iterator[Finding]:
    """Data sets and the weights of the FID's network; nodes often reach no internet."""
    from hpcvision import data
    from hpcvision.metrics.fidelity import INCEPTION_FILE

    for name in ("cifar100", "addnist"):
        facts = data.DATASETS[name].status(32 if name == "cifar100" else 28)
        if facts["prepared"]:
            yield Finding("PASS", name, f"prepared in {data_folder().absolute()}")
        else:
            where = " here, as nodes reach no internet" if profile.internet_on_nodes is False else ""
            where += "" if os.environ.get("HPCVISION_DATA") else ", after export HPCVISION_DATA=FOLDER"
            yield Finding("WARN", name, f"not in {data_folder().absolute()}; run{where}: hpcvision data fetch {name}")
    if (data.inception_folder() / INCEPTION_FILE).exists():
        yield Finding("PASS", "inception", "its weights are staged")
    else:
        yield Finding("WARN", "inception", "not staged, no FID without it; run: hpcvision data fetch inception")
