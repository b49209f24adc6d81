"""What Slurm says: about jobs, by squeue and, where the site has it, sacct; about itself, by scontrol."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from hpcvision.errors import UserError

ANSWER_SECONDS = 30.0
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
"""States in which a job is over; all others are of jobs that wait or run."""


class NoAnswer(UserError):
    """Slurm said nothing in time."""


class MayBeTaken(UserError):
    """Nobody knows whether there is a job now."""


MUTE = "no answer from Slurm, which may have taken the job: {}; see squeue --me"


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
        return self.state not in ENDED


def outside(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what Slurm has set for the job that this process is in; on a login node all of it.

    Inside a job, SLURM_MEM_PER_CPU and the like would become options of the job that is submitted.
    """
    env = dict(os.environ if environment is None else environment)
    if "SLURM_JOB_ID" not in env:
        return env
    of_the_job = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_", "HPCVISION_AGAIN", "HPCVISION_ONE_TRY")
    return {key: value for key, value in env.items() if key == "SLURM_CONF" or not key.startswith(of_the_job)}


def ask(*command: str, words: str | None = None, each: float | None = None) -> subprocess.CompletedProcess[str]:
    """The answer of one of Slurm's commands, whatever its exit code; `words` go to its standard input.

    each: seconds to wait, where that is not as for all others.

    Raises UserError where there is no Slurm, or no answer.
    """
    process = asked_ahead.pop(command, None) or begin_to_ask(*command)
    try:
        out, err = process.communicate(words, timeout=seconds_left(each))
    except subprocess.TimeoutExpired as error:
        process.terminate()  # srun then takes its request back
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
        process.wait()  # not for its output, which a child of a site's own wrapper may still hold
        waited = f"for {error.timeout:.0f} s" if error.timeout >= 1 else "in the time that was left"
        raise NoAnswer(f"{command[0]} has not answered {waited}; try again later") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


_patience = {"deadline": float("inf"), "each": ANSWER_SECONDS}


@contextmanager
def answers_by(deadline: float, *, each: float) -> Iterator[None]:
    """Nobody waits longer than `each` seconds for an answer, and not after that moment of time.monotonic()."""
    before = dict(_patience)
    _patience.update(deadline=deadline, each=each)
    try:
        yield
    finally:
        _patience.update(before)


def seconds_left(each: float | None = None) -> float:
    """How long to wait for an answer now; each: at most so long."""
    return max(0.1, min(each or _patience["each"], _patience["deadline"] - time.monotonic()))


asked_ahead: dict[tuple[str, ...], subprocess.Popen[str]] = {}
"""Questions that somebody will want the answer to."""


def begin_to_ask(*command: str) -> subprocess.Popen[str]:
    """One of Slurm's commands, begun; raises UserError where there is no Slurm."""
    check_there(command[0])
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        env=outside() | {"SLURM_TIME_FORMAT": "standard"},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
    )


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
    """The jobs among `ids` that have not ended, or not long ago; an array's tasks are named 12_3, and all of them 12.

    Of an array one task that lives stands for all, if there is one.

    Raises UserError when squeue gives no answer, which is not the same as an empty queue.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    # All of this user's jobs, not --jobs: one id that Slurm has forgotten makes an error of the whole question. In all
    # states, as Slurm remembers jobs for some minutes after their end (MinJobAge), without accounting too.
    shown = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%A|%F|%T|%r|%N|%S")
    answer = ask(*shown, "--me")
    if answer.returncode:
        raise UserError(f"squeue gave no answer ({first_line(answer)}); try again later")
    lines = answer.stdout.splitlines()
    missing = wanted - {name for line in lines for name in line.split("|")[:3]}
    if missing:  # a colleague's, in a shared folder of runs; or forgotten
        lines += ask(*shown, f"--jobs={','.join(sorted(missing))}").stdout.splitlines()
    found: dict[str, Job] = {}
    for line in lines:
        name, number, array, word, reason, nodes, start = line.split("|", 6)
        job = Job(word, "" if reason == "None" else reason, nodes, "" if start == "N/A" else start)
        for known in wanted & {name, number, array}:
            state = found[known].state if known in found else "COMPLETED"
            if state == "COMPLETED" or (job.lives and state != "RUNNING"):
                found[known] = job
    return found


def ended(ids: Iterable[str]) -> dict[str, Job]:
    """What accounting tells about the jobs among `ids`; nothing where the site keeps no accounts or does not tell."""
    wanted = set(ids)
    if not wanted or shutil.which("sacct") is None:
        return {}
    columns = "--format=JobID,JobIDRaw,State,Reason,NodeList,Start"
    try:
        answer = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", columns, f"--jobs={','.join(sorted(wanted))}"
        )
    except UserError:
        return {}
    found: dict[str, Job] = {}
    for line in answer.stdout.splitlines() if not answer.returncode else []:
        name, number, state, reason, nodes, start = line.split("|", 5)
        for known in wanted & {name, number, name.partition("_")[0]}:
            if known not in found or found[known].state == "COMPLETED":  # of an array what went wrong, if something did
                found[known] = Job(state.split()[0], "" if reason == "None" else reason, nodes, start)  # CANCELLED by 7
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


PARTITIONS = ("scontrol", "show", "partition", "--oneliner")


def partitions() -> dict[str, dict[str, str]]:
    """`scontrol show partition` by name."""
    answer = ask(*PARTITIONS)
    if answer.returncode:
        raise UserError(f"scontrol gave no answer ({first_line(answer)}); try again later")
    rows = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in answer.stdout.splitlines()]
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row}


def gpus_of_nodes(partition: str | None) -> list[tuple[str, int]]:
    """(type, number) of the GPUs of every kind of node in a partition, or in all; the type may be empty."""
    where = [f"--partition={partition}"] if partition else []
    answer = ask("sinfo", "--noheader", *where, "--format=%G")
    if answer.returncode:
        raise UserError(f"sinfo gave no answer ({first_line(answer)}); try again later")
    found = set()
    for line in answer.stdout.splitlines():
        for word in line.split(","):
            parts = word.split("(")[0].split(":")
            if parts[0] == "gpu" and parts[-1].isdigit():
                found.add((parts[1] if len(parts) > 2 else "", int(parts[-1])))
    return sorted(found)


OWN_JOBS = ("squeue", "--noheader", "--array", "--me", "--format=%i")


def own_jobs() -> int:
    """How many jobs this user has in the queue, every task of an array counted."""
    answer = ask(*OWN_JOBS)
    return len(answer.stdout.split()) if not answer.returncode else 0


def minutes(words: str) -> float:
    """`1-02:03:04`, `02:03:04` or `03:04`, as Slurm writes a limit, in minutes; UNLIMITED is infinite."""
    if not words[:1].isdigit():
        return float("inf")
    days, _, clock = words.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    while len(parts) < 3:
        parts.insert(0, 0)
    return 1440 * int(days or 0) + 60 * parts[0] + parts[1] + parts[2] / 60


def test_only(script: str, submit_command: str) -> str:
    """What `sbatch --test-only` says to a script: the expected start. Raises UserError when it refuses."""
    answer = ask(*shlex.split(submit_command), "--test-only", words=script)
    said = answer.stderr + answer.stdout
    if answer.returncode:
        raise UserError(f"Slurm refuses: {in_words(said)}")
    lines = [line for line in said.splitlines() if "to start at" in line]
    return in_words(lines[0]) if lines else "Slurm would take it"


def submit(script: str, submit_command: str) -> str:
    """Hand a script to Slurm as it is; the job's id.

    Raises UserError when Slurm refuses, and MayBeTaken when it does not answer.
    """
    try:
        answer = ask(*shlex.split(submit_command), words=script)
    except NoAnswer as error:
        raise MayBeTaken(MUTE.format(str(error).partition(";")[0])) from None
    # `Submitted batch job 12 on cluster c1`, or words of the site's own with a number.
    found = re.search(r"job (\d+)", answer.stdout) or re.search(r"(\d+)", answer.stdout)
    if answer.returncode or not found:
        raise refusal(answer.stderr + answer.stdout)
    return found[1]


def refusal(said: str) -> UserError:
    """What sbatch said instead of a job's id, as the error to raise."""
    words = in_words(said)
    if "timed out" in words:
        return MayBeTaken(MUTE.format(words))
    return UserError(f"Slurm refuses the job: {words}")


def in_words(said: str) -> str:
    """What sbatch said, in one line without its own prefixes."""
    lines = (line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in said.splitlines())
    return "; ".join(line for line in lines if line)
