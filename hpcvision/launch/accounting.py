"""What Slurm's accounting tells of this user: accounts, qos, and their limits; nothing where the site keeps none."""

import getpass
import re
import shutil

from hpcvision.errors import UserError
from hpcvision.launch.queue import ask, settings

ROWS = ("--noheader", "--parsable2", "show")


def told(*words: str) -> list[list[str]]:
    """The rows of `sacctmgr show`, of two columns; none where the site has no such command, or it fails."""
    if shutil.which("sacctmgr") is None:
        return []
    try:
        answer = ask("sacctmgr", *ROWS, *words)
    except UserError:
        return []
    lines = answer.stdout.splitlines() if not answer.returncode else []
    return [line.split("|") for line in lines if line.count("|") == 1]


def question_of_accounts() -> tuple[str, ...]:
    """What to ask `sacctmgr show`."""
    return "assoc", f"user={getpass.getuser()}", "format=account,qos"


def accounts() -> dict[str, set[str]]:
    """This user's accounts with the qos of each; empty where the site keeps no accounts, or does not tell."""
    found: dict[str, set[str]] = {}
    for account, qos in told(*question_of_accounts()):
        found.setdefault(account, set()).update(filter(None, qos.split(",")))
    return found


def default_account() -> str | None:
    """The account of this user's jobs that name none, where the site tells."""
    rows = told("user", getpass.getuser(), "format=user,defaultaccount")
    return rows[0][1] if rows else None


def above(account: str) -> set[str]:
    """The account and those that it is below, as far as the site tells."""
    rows = told("account", "withassoc", "format=account,parentname")
    parents = {name: parent for name, parent in rows if parent}
    found = {account}
    while (account := parents.get(account, "")) and account not in found:
        found.add(account)
    return found


def submit_limits(qos: set[str]) -> dict[str, int]:
    """How many jobs each of these qos lets a user have in the queue, for those that limit it."""
    rows = told("qos", "format=name,maxsubmitpu")
    return {name: int(count) for name, count in rows if name in qos and count.isdigit()}


def is_enforced(what: str) -> bool:
    """Whether Slurm looks at the `associations`, `limits` or `qos` of jobs; True when it does not tell."""
    enforced = set(settings().get("AccountingStorageEnforce", "all").lower().split(","))
    implying = {
        "associations": {"associations", "limits", "qos", "safe", "wckeys", "all"},
        "limits": {"limits", "safe", "all"},
        "qos": {"qos", "all"},
    }
    return bool(enforced & implying[what])


def question_of_manager() -> tuple[str, ...]:
    """What to ask the controller about this user's accounts and all qos.

    0.01 s, where the database behind `accounts` takes 0.3 s; but not every Slurm tells which qos an account has so.
    """
    return "scontrol", "show", "assoc_mgr", f"users={getpass.getuser()}", "flags=assoc,qos", "--oneliner"


class Manager:
    """The accounts, and the longest stays that they and the qos allow, as the controller has them."""

    def __init__(self) -> None:
        answer = ask(*question_of_manager())
        lines = answer.stdout.splitlines() if not answer.returncode else []
        self.of_accounts: dict[str, float] = {}
        """Minutes by account of this user; infinite without a limit."""
        self.of_qos: dict[str, float] = {}
        """Minutes by qos, for those that limit it."""
        for line in lines:
            limit = re.search(r"\bMaxWallPJ=(\d+)", line)
            account = re.match(r"ClusterName=\S+ Account=(\S+) UserName=(\w[^( ]*)\(", line)
            qos = re.match(r"QOS=([^( ]+)\(", line)
            if account and account[2] == getpass.getuser():
                minutes = float(limit[1]) if limit else float("inf")
                # There may be one for every partition.
                self.of_accounts[account[1]] = max(minutes, self.of_accounts.get(account[1], 0.0))
            elif qos and limit:
                self.of_qos[qos[1]] = float(limit[1])

    def longest_stay(self, account: str | None, qos: str | None, qos_of_partition: str | None) -> tuple[float, str]:
        """(minutes, whose limit that is): a qos goes before the account; of the partition's and the job's the longer.

        Which of those two goes first, a flag says that is not told; nor is which qos a job without one gets. Infinite
        where it is not known.
        """
        limits = {f"qos {name}": self.of_qos[name] for name in (qos_of_partition, qos) if name in self.of_qos}
        if limits:
            whose = max(limits, key=lambda one: limits[one])
            return limits[whose], whose
        if qos or not self.of_qos:
            own = self.of_accounts if account is None else {account: self.of_accounts.get(account, float("inf"))}
            if own:
                name = max(own, key=lambda one: own[one])
                return own[name], f"account {name}"
        return float("inf"), ""
