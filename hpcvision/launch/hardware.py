"""The environment that the nodes will use, on the login node; and the nodes' cards and drivers against its torch."""

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hpcvision.errors import UserError
from hpcvision.launch import queue
from hpcvision.launch.batch import Placement, options
from hpcvision.launch.finding import Finding, Verdict
from hpcvision.launch.profile import Profile

SETUP_SECONDS = 10.0
PROBE_SECONDS = 4
ENOUGH_SECONDS = 7.0  # for srun to give up by itself: one that is killed leaves its request in the queue
# Major CUDA version -> oldest driver that runs it (NVIDIA's table of minor version compatibility).
LEAST_DRIVERS = {"11": 450, "12": 525, "13": 580}

# Compute capabilities of the cards by what sites call them in GRES names.
CAPABILITIES = {
    "pascal": 60, "p100": 60, "1080": 61, "titanx": 61, "p40": 61, "volta": 70, "v100": 70, "titanv": 70,
    "turing": 75, "t4": 75, "2080": 75, "rtx6000": 75, "rtx8000": 75, "ampere": 80, "a100": 80, "a30": 80, "a40": 86,
    "a10": 86, "3090": 86, "3080": 86, "a5000": 86, "a6000": 86, "ada": 89, "l4": 89, "l40": 89, "4090": 89,
    "hopper": 90, "h100": 90, "h200": 90, "gh200": 90, "blackwell": 100, "b100": 100, "b200": 100, "5090": 120,
}  # fmt: skip

# The last line that Python says after the profile's lines of setup.
QUESTION = """
import json
import hpcvision
import torch
print()
print(json.dumps([torch.version.cuda or "", torch.version.cuda and torch._C._cuda_getArchFlags() or ""]))
"""


@dataclass(frozen=True)
class Torch:
    """What the torch of the nodes' environment was built for."""

    cuda: str
    """Such as 12.6; empty for a build without."""
    flags: str
    """Such as `sm_75 sm_80 compute_90`."""

    @property
    def capabilities(self) -> list[int]:
        """Compute capabilities times ten that it has kernels for, sorted; empty for a build without CUDA."""
        digits = ["".join(filter(str.isdigit, flag)) for flag in self.flags.split() if flag.startswith("sm_")]
        return sorted({int(text) for text in digits})


def setup_lines(profile: Profile) -> tuple[Finding, Torch | None]:
    """Whether the profile's lines run, and Python then has hpcvision and torch; and which torch that is."""
    python = profile.python or shlex.quote(sys.executable)
    text = "\n".join([*profile.setup, f"{python} -c {shlex.quote(QUESTION)}"])
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    command = ["bash", "-e", "-c", text]
    # A session of its own, as all that the lines have started ends with it.
    process = subprocess.Popen(
        command,
        stdin=null,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        env=queue.outside(),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=queue.seconds_left(each=SETUP_SECONDS))
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        words = f"its lines and torch took more than {error.timeout:.0f} s; try: time {python} -c 'import torch'"
        return Finding("WARN", "setup", words), None
    if process.returncode:
        last = (err.strip().splitlines() or ["no words"])[-1]
        return Finding("FAIL", "setup", f"{last}; mend the lines of setup, or python, in the profile"), None
    try:
        torch = Torch(*json.loads(out.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return Finding(
            "FAIL", "setup", f"{python} was not reached; a line of setup in the profile ends the shell"
        ), None
    return Finding("PASS", "setup", f"{len(profile.setup)} line(s), then {python} with hpcvision"), torch


def reinstall(profile: Profile) -> str:
    """How to get a torch for the site's cards: where its wheels are is the site's matter, so the profile's."""
    if profile.torch_index:
        return f"pip uninstall -y torch torchvision; pip install -i {profile.torch_index} torch torchvision"
    return "take the command for an older CUDA from pytorch.org/get-started, and keep its address as torch_index"


def graphics_cards(profile: Profile, torch: Torch | None) -> Iterator[Finding]:
    """The partition's cards against the kernels of torch; this machine's kind against the nodes'."""
    try:
        answer = queue.ask("scontrol", "show", "node", "--oneliner")
        types = sorted({kind for kind, _ in queue.gpus_of_nodes(profile.partition)}) if profile.gpus_per_node else []
    except UserError as error:
        yield Finding("WARN", "gpus", f"{error}; look with: sinfo -o %G")
        return
    kinds = {word.partition("=")[2] for word in answer.stdout.split() if word.startswith("Arch=")}
    if kinds and platform.machine() not in kinds:
        words = f"the nodes are {', '.join(sorted(kinds))}, this machine is {platform.machine()}"
        yield Finding("FAIL", "machines", f"{words}; install hpcvision on a node and set python in the profile")
        return
    if not profile.gpus_per_node:
        yield Finding("PASS", "gpus", "none asked for")
        return
    if profile.gpu_type:
        types = [profile.gpu_type]
    if torch is None:
        yield Finding("WARN", "gpus", f"{', '.join(types) or 'some'}, torch not known; mend setup first")
        return
    built, remedy = torch.capabilities, reinstall(profile)
    if not built:
        yield Finding("FAIL", "gpus", f"this torch has no kernels for GPUs; {remedy}")
        return
    found: dict[tuple[Verdict, str], list[str]] = {}  # cards of which the same is to be said share a line
    for kind in types or ["the GPUs"]:
        names = [name for name in CAPABILITIES if name in kind.lower().replace("_", "")]
        capability = CAPABILITIES[max(names, key=len)] if names else 0  # a100 has a10 in it
        said: tuple[Verdict, str] = ("PASS", "this torch has kernels for it")
        if not capability:
            said = "WARN", "of unknown kind; look with: srun --gres=gpu:1 nvidia-smi"
        elif not runs_on(capability, built):
            said = "FAIL", f"no kernels in this torch (oldest: {min(built) / 10:g}); {remedy}"
        elif capability < 80:
            said = "PASS", "this torch has kernels for it; no native bf16: use train.precision=fp16 or fp32"
        found.setdefault(said, []).append(f"{kind} ({capability / 10:g})" if capability else kind)
    for (verdict, words), cards in found.items():
        yield Finding(verdict, "gpus", f"{', '.join(cards)}: {words}")


def driver(profile: Profile, place: Placement, torch: Torch) -> Finding:
    """The driver of a node's card against the CUDA of torch, if a card is free at once."""
    asked = options("doctor", profile, replace(place, nodes=1, tasks_per_node=1, gpus_per_node=1, minutes=1))
    flags = [f"--{key}={value}" for key, value in asked.items() if value and key not in ("signal", "open-mode")]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    look = "look with: srun --gres=gpu:1 nvidia-smi"
    if queue.seconds_left(each=ENOUGH_SECONDS) < ENOUGH_SECONDS:
        return Finding("WARN", "driver", f"no time left to ask for a card; {look}")
    try:
        answer = queue.ask("srun", f"--immediate={PROBE_SECONDS}", *flags, *query, each=ENOUGH_SECONDS)
    except UserError as error:
        return Finding("WARN", "driver", f"{error}; {look}")
    version = (answer.stdout.split() or [""])[0]
    if answer.returncode or not version[:1].isdigit():
        said = [line for line in answer.stderr.splitlines() if "Exited with exit code" not in line] or ["no words"]
        # Slurm's words for a job that cannot start at once.
        busy = re.search("nodes are busy|mmediate", answer.stderr)
        why = f"no card was free within {PROBE_SECONDS} s" if busy else f"not known ({said[-1]})"
        return Finding("WARN", "driver", f"{why}; {look}")
    least = LEAST_DRIVERS.get(torch.cuda.partition(".")[0], 0)
    if int(version.partition(".")[0]) < least:
        words = f"{version} is too old for this torch's CUDA {torch.cuda}, which needs {least}"
        return Finding("FAIL", "driver", f"{words}; {reinstall(profile)}")
    return Finding("PASS", "driver", f"{version} runs this torch's CUDA {torch.cuda}")


def runs_on(capability: int, built: list[int]) -> bool:
    """Kernels run on cards of the same major version and at least the same minor one."""
    return any(capability // 10 == one // 10 and capability >= one for one in built)
