"""Writes a cluster's profile from what Slurm tells on its login node; only what it does not tell is asked for."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch import accounting, queue
from hpcvision.launch.profile import Profile

Ask = Callable[[str, list[str]], str | None]
"""(what is asked, choices) -> the answer, or None where nobody can be asked."""


@dataclass(frozen=True)
class Site:
    """What was found, as lines of a profile with their comments."""

    name: str
    lines: list[str]

    def write(self, path: Path) -> None:
        """The profile; raises UserError when it exists, as its owner may have changed it."""
        if path.exists():
            raise UserError(f"{path} exists; remove it first, or write elsewhere with --output")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(self.lines) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from None


def detect(ask: Ask, *, account: str | None = None, partition: str | None = None) -> Site:
    """The profile of the cluster that this machine is a login node of; account, partition: instead of asking."""
    config = queue.settings()
    partitions = queue.partitions()
    chosen = partition or choose_partition(partitions, ask)
    if chosen not in partitions:
        raise UserError(f"there is no partition {chosen!r} on this cluster; choose one of {', '.join(partitions)}")
    facts = partitions[chosen]
    limit = queue.minutes(facts.get("MaxTime", "UNLIMITED"))
    gpus = queue.gpus_of_nodes(chosen)
    name = config.get("ClusterName", "cluster")
    lines = [f"# {name}, as its Slurm {config.get('SLURM_VERSION', '')} told; check it with `hpcvision doctor`."]

    def add(key: str, value: object, why: str) -> None:
        lines.append(f"{key} = {json.dumps(value)}".ljust(34) + f" # {why}")

    add("executor", "slurm", "through submitit")
    accounts = accounting.accounts()
    default = accounting.default_account() if len(accounts) > 1 and not account else None
    wanted = account or choose_account(sorted(accounts), default, facts, ask)
    if wanted:
        add("account", wanted, f"yours: {', '.join(sorted(accounts)) or 'not told here'}")
    add("partition", chosen, f"the others: {', '.join(other for other in partitions if other != chosen) or 'none'}")
    qos = sorted(accounts.get(wanted or "", set()))
    if qos:
        lines.append(f"# qos: {', '.join(qos)}; the first that fits is taken when none is given")
    add("time_limit_minutes", int(min(limit, 1440)), f"of at most {limit:.0f}")
    add("requeue", True, "an unfinished run queues itself again; false where that is forbidden")
    if gpus:
        add("gpus_per_node", 1, "nodes have " + ", ".join(f"{count} {kind or 'GPUs'}" for kind, count in gpus))
        add("gpu_request", "gres", "--gres=gpu:1")
    add("cpus_per_task", 2, "cores of every process")
    per_cpu = facts.get("DefMemPerCPU") or config.get("DefMemPerCPU", "UNLIMITED")
    lines.append(f'# memory = "per_cpu" or "per_node", and memory_gb; the site gives {per_cpu} MB per CPU by itself')
    add("max_array_size", int(config.get("MaxArraySize", "1001")) - 1, "scontrol show config: MaxArraySize - 1")
    limits = accounting.submit_limits(set(qos))
    if len(set(limits.values())) == 1:
        add("max_submitted_jobs", next(iter(limits.values())), f"of your qos {', '.join(limits)}")
    elif limits:
        told = ", ".join(f"{count} for qos {name}" for name, count in limits.items())
        lines.append(f"# max_submitted_jobs: {told}")
    Profile.model_validate(tomllib.loads("\n".join(lines)))
    return Site(name, lines)


def choose_partition(partitions: dict[str, dict[str, str]], ask: Ask) -> str:
    """The default one if it has GPUs or none has, else one with GPUs that is asked for."""
    default = next((name for name, facts in partitions.items() if facts.get("Default") == "YES"), None)
    with_gpus = [name for name in partitions if queue.gpus_of_nodes(name)]
    if not partitions:
        raise UserError("this cluster shows you no partition; ask its support, or copy slurm/profiles/generic.toml")
    candidates = with_gpus or list(partitions)
    if len(candidates) == 1:
        return candidates[0]
    return ask("partition", candidates) or (default if default in candidates else candidates[0])


def choose_account(accounts: list[str], default: str | None, facts: dict[str, str], ask: Ask) -> str | None:
    """The account that the partition allows, asked for where there are several; None where the site keeps none.

    default: proposed before the others.
    """
    allowed = facts.get("AllowAccounts", "ALL")
    fitting = [name for name in accounts if allowed == "ALL" or name in allowed.lower().split(",")]
    fitting.sort(key=lambda name: name != default)
    if len(fitting) <= 1:
        return fitting[0] if fitting else None
    return ask("account", fitting) or fitting[0]
