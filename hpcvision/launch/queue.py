"""What Slurm says: about jobs, by squeue and, where the site has it, sacct; about itself, by scontrol."""

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpcvision.errors import UserError

ANSWER_SECONDS = 30.0
LIVING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING")
"""States in which a job has not ended."""


@dataclass(frozen=True)
class Job:
    """A job as Slurm knows it now."""

    state: str
    """Such as PENDING or OUT_OF_MEMORY."""
    reason: str = ""
    """Slurm's word for why it waits or ended, such as Priority."""
    nodes: str = ""
    """Such as node[0-1]."""
    start: str = ""
    """When it began or is expected to, in local time; empty when unknown."""

    @property
    def lives(self) -> bool:
        """True while it has not ended."""
        return self.state in LIVING


def outside(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what Slurm has set for the job that this process may be in.

    Inside a job, SLURM_MEM_PER_CPU and the like would become options of the job that is submitted.
    """
    env = os.environ if environment is None else environment
    return {
        key: value
        for key, value in env.items()
        if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_"))
    }


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """The answer of one of Slurm's commands, whatever its exit code.

    Raises UserError where there is no Slurm, or no answer.
    """
    check_there(command[0])
    try:
        return subprocess.run(
            command, env=outside(), capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} has not answered for {ANSWER_SECONDS:.0f} s; try again later") from None


def check_there(command: str) -> None:
    """Raise UserError where there is no such command of Slurm."""
    if shutil.which(command) is None:
        raise UserError(
            f"there is no {command} on this machine: no Slurm; go to the cluster's login node, or use --cluster local"
        )


def first_line(answer: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed said first."""
    lines = [line for line in (answer.stderr + answer.stdout).splitlines() if line.strip()]
    return lines[0].strip() if lines else f"exit code {answer.returncode}"


def in_queue(ids: Iterable[str]) -> dict[str, Job]:
    """The jobs among `ids` that have not ended, or not long ago; an array's tasks are named 12_3.

    Raises UserError when squeue gives no answer, which is not the same as an empty queue.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    # All of this user's jobs, not --jobs: one id that Slurm has forgotten makes an error of the whole question.
    # With all states, as Slurm remembers jobs for a few minutes after their end (MinJobAge), without accounting too.
    answer = ask("squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i|%T|%r|%N|%S")
    if answer.returncode:
        raise UserError(f"squeue gave no answer ({first_line(answer)}); try again later")
    found = {}
    for line in answer.stdout.splitlines():
        name, state, reason, nodes, start = line.split("|", 4)
        if name in wanted:
            found[name] = Job(state, "" if reason == "None" else reason, nodes, "" if start == "N/A" else start)
    return found


def ended(ids: Iterable[str]) -> dict[str, Job]:
    """What accounting tells about the jobs among `ids`; nothing where the site keeps no accounts."""
    wanted = sorted(set(ids))
    if not wanted or shutil.which("sacct") is None:
        return {}
    words = "--format=JobID,State,Reason,NodeList,Start"
    answer = ask("sacct", "--noheader", "--parsable2", "--allocations", words, f"--jobs={','.join(wanted)}")
    if answer.returncode:
        return {}
    found = {}
    for line in answer.stdout.splitlines():
        name, state, reason, nodes, start = line.split("|", 4)
        if name in wanted:  # `CANCELLED by 1001`
            found[name] = Job(state.split()[0], "" if reason == "None" else reason, nodes, start)
    return found


def jobs(ids: Iterable[str]) -> dict[str, Job]:
    """All that Slurm still knows about `ids`: the queue first, as accounts lag behind."""
    ids = list(ids)
    queued = in_queue(ids)
    return ended(name for name in ids if name not in queued) | queued


def settings() -> dict[str, str]:
    """`scontrol show config` as names and values."""
    answer = ask("scontrol", "show", "config")
    if answer.returncode:
        raise UserError(f"scontrol gave no answer ({first_line(answer)}); try again later")
    pairs = (line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def partitions() -> dict[str, dict[str, str]]:
    """`scontrol show partition` by name."""
    answer = ask("scontrol", "show", "partition", "--oneliner")
    if answer.returncode:
        raise UserError(f"scontrol gave no answer ({first_line(answer)}); try again later")
    rows = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in answer.stdout.splitlines()]
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row}


def gpus_of_nodes(partition: str | None) -> list[tuple[str, int]]:
    """(type, number) of the GPUs of every kind of node in a partition, or in all; the type may be empty."""
    where = [f"--partition={partition}"] if partition else []
    answer = ask("sinfo", "--noheader", *where, "--format=%G")
    found = set()
    for line in answer.stdout.splitlines():
        for word in line.split(","):
            parts = word.split("(")[0].split(":")
            if parts[0] == "gpu" and parts[-1].isdigit():
                found.add((parts[1] if len(parts) > 2 else "", int(parts[-1])))
    return sorted(found)


def accounts() -> dict[str, set[str]]:
    """This user's accounts with the qos of each; empty where the site keeps no accounts."""
    answer = ask(
        "sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={getpass.getuser()}", "format=account,qos"
    )
    if answer.returncode:
        return {}
    rows = (line.split("|") for line in answer.stdout.splitlines() if "|" in line)
    return {row[0]: set(filter(None, row[1].split(","))) for row in rows}


def minutes(words: str) -> float:
    """`1-02:03:04`, `02:03:04` or `03:04`, as Slurm writes a limit, in minutes; UNLIMITED is infinite."""
    if not words[:1].isdigit():
        return float("inf")
    days, _, clock = words.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    while len(parts) < 3:
        parts.insert(0, 0)
    return 1440 * int(days or 0) + 60 * parts[0] + parts[1] + parts[2] / 60


def test_only(script: str) -> str:
    """What `sbatch --test-only` says to a script: the expected start, or why it refuses.

    Raises UserError when it refuses.
    """
    check_there("sbatch")
    answer = subprocess.run(
        ["sbatch", "--test-only"], input=script, env=outside(), capture_output=True, text=True, timeout=ANSWER_SECONDS
    )
    said = first_line(answer).removeprefix("sbatch: ").removeprefix("error: ")
    if answer.returncode:
        raise UserError(f"Slurm refuses: {said}")
    return said
