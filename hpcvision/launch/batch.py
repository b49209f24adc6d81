"""The batch script: what is asked of Slurm, and the lines around the command that runs on the nodes."""

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch.profile import Profile
from hpcvision.stopping import leave_seconds

# Slurm replaces what follows a percent sign in the name of a log, and its options cannot hold the others.
UNUSABLE_IN_PATHS = re.compile(r"[%\\'\"\x00-\x1f]")


@dataclass(frozen=True)
class Placement:
    """How much of a cluster one job takes."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    minutes: int

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.nodes * self.tasks_per_node


def options(name: str, profile: Profile, place: Placement, *, after: str | None = None) -> dict[str, str]:
    """What is asked of sbatch, by long name without the dashes.

    after: Slurm job ids with colons that have to end first, however they end. Raises UserError for anything else.
    """
    if after is not None and not re.fullmatch(r"\d+(_\d+)?(:\d+(_\d+)?)*", after):
        raise UserError(f"--after={after!r} is no id of a Slurm job; write a number such as 1234 or 1234_5")
    asked: dict[str, str | None] = {
        "job-name": re.sub(r"[^\w.=-]", "_", name),
        "nodes": str(place.nodes),
        "ntasks-per-node": str(place.tasks_per_node),
        "cpus-per-task": str(profile.cpus_per_task),
        "time": str(place.minutes),
        "account": profile.account,
        "partition": profile.partition,
        "qos": profile.qos,
        "exclude": ",".join(profile.exclude) or None,
        "dependency": f"afterany:{after}" if after else None,
        "open-mode": "append",
        "signal": f"USR2@{leave_seconds(60 * place.minutes):.0f}",
    }
    asked["requeue" if profile.requeue else "no-requeue"] = ""
    if place.gpus_per_node and profile.gpu_request != "none":
        kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
        prefix = "gpu:" if profile.gpu_request == "gres" else ""
        asked[profile.gpu_request] = f"{prefix}{kind}{place.gpus_per_node}"
    if profile.memory_gb is not None:
        flag = {"per_node": "mem", "per_cpu": "mem-per-cpu", "per_gpu": "mem-per-gpu"}[profile.memory]
        asked[flag] = f"{1024 * profile.memory_gb:.0f}M"
    return {key: value for key, value in asked.items() if value is not None}


def srun_options(profile: Profile) -> list[str]:
    """Options of srun: since Slurm 22.05 it does not take --cpus-per-task from the script; a failed rank ends all."""
    # Rank 0 writes the archive and draws when the others have ended; that takes minutes on a slow disk at most.
    return [f"--cpus-per-task={profile.cpus_per_task}", "--kill-on-bad-exit=1", "--wait=600", *profile.srun_options]


# The id of an array's last task is the array's own, so plain $SLURM_JOB_ID would mean all of its tasks.
ME = 'me="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"'


def lines_before(profile: Profile, again: str) -> list[str]:
    """The script's lines before the command; `again`: a path as the shell reads it, for `lines_after`."""
    own = profile.node_folder  # the shell replaces its variables
    return [
        *profile.setup,
        *(
            [
                f'mkdir -p "{own}" && export TMPDIR="{own}"',
                '[ "${SLURM_NNODES:-1}" = 1 ] || srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 '
                f'{shlex.join([*profile.srun_options, "mkdir"])} -p "$TMPDIR" || true',
            ]
            if own
            else []
        ),
        f"export OMP_NUM_THREADS={profile.cpus_per_task} SRUN_CPUS_PER_TASK={profile.cpus_per_task}",
        ME,
        "# The run stops itself in time for its end; older Slurm does not tell the end to the job, so ask.",
        'if [ -z "$SLURM_JOB_END_TIME" ] && end=$(squeue -h -j "$me" -o %e) && end=$(date -d "$end" +%s)',
        'then export SLURM_JOB_END_TIME="$end"',
        "fi",
        *(
            [
                "# Rank 0 makes this file when the run has stopped before its last step.",
                f"export HPCVISION_AGAIN={again}",
            ]
            if profile.requeue
            else [
                "# Another process in the run's folder is waited for: this job cannot queue itself again.",
                "export HPCVISION_ONE_TRY=1",
            ]
        ),
    ]


def lines_after(profile: Profile) -> list[str]:
    """The script's lines after the command: an unfinished run goes back into the queue, unless it was cancelled."""
    if not profile.requeue:
        return ["exit $?"]
    return [
        "code=$?",
        "# 143: ended by SIGTERM before it could listen, as a preempted job may be; but not for ever.",
        'if [ -e "$HPCVISION_AGAIN" ] || { [ "$code" = 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; }',
        'then rm -f "$HPCVISION_AGAIN"',
        "    for try in 1 2 3 4 5 6 7 8 9 10  # while Slurm's controller gives no answer",
        '    do state=$(squeue -h -j "$me" -o %T) && [ "$state" != RUNNING ] && break  # cancelled',
        '        scontrol requeue "$me" && break',
        "        sleep 5",
        "    done",
        "fi",
        "exit $code",
    ]


def script(
    name: str,
    profile: Profile,
    place: Placement,
    words: list[str],
    *,
    log: str,
    after: str | None = None,
    array: int | None = None,
    python: str | None = None,
    exports: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """A whole batch script that needs no submitit: `words` are what Python is told in every task, a list of arguments.

    array: so many jobs, each of which is told its share as `--share 0/N` to `N-1/N`;  python: as the shell reads it,
    where the profile names none, by default the one that runs this;  exports: variables that the script sets;
    folder: where it runs, by default where it is handed in.
    """
    asked = options(name, profile, place, after=after) | {"output": log}
    if folder:
        asked["chdir"] = str(folder)
    python = profile.python or python or shlex.quote(sys.executable)
    command = f"{shlex.join(['srun', *srun_options(profile)])} {python} {shlex.join(words)}"
    if array:
        asked["array"] = f"0-{array - 1}"
        command += f' --share "$SLURM_ARRAY_TASK_ID/{array}"'
    asked_in_order = sorted(asked.items())
    return "\n".join(
        [
            "#!/bin/bash",
            *(
                f"#SBATCH --{key}{'=' if value else ''}{shlex.quote(value) if value else ''}"
                for key, value in asked_in_order
            ),
            "",
            *(f"export {key}={shlex.quote(value)}" for key, value in (exports or {}).items()),
            *lines_before(profile, '"$PWD/.hpcvision-again-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"'),
            "# For hpcvision logs and status.",
            'export HPCVISION_LOG="$(readlink "/proc/$$/fd/1")"',
            "unset SUBMITIT_EXECUTOR  # of a job that has submitted this one",
            'echo "hpcvision: job $me, start ${SLURM_RESTART_COUNT:-0}"',
            "",
            command,
            "",
            *lines_after(profile),
            "",
        ]
    )


def check_path(path: Path) -> None:
    """Raise UserError for a path that a batch script cannot name safely."""
    found = UNUSABLE_IN_PATHS.search(str(path))
    if found:
        raise UserError(f"Slurm cannot name logs in {str(path)!r} ({found[0]!r} in it); choose another --runs")
