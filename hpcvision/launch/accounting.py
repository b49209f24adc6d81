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
        found.setdefault(account.lower(), set()).update(filter(None, qos.lower().split(",")))
    return found


def default_account() -> str | None:
    """The account of this user's jobs that name none, in small letters, where the site tells."""
    rows = told("user", getpass.getuser(), "format=user,defaultaccount")
    return rows[0][1].lower() if rows else None


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
    return {name: int(count) for name, count in rows if name.lower() in qos and count.isdigit()}


def may_exceed(flag: str, qos: set[str]) -> bool:
    """Whether a qos of a job that names these, or perhaps another where it names none, has that flag."""
    rows = told("qos", "format=name,flags")
    return any(flag in flags.split(",") for name, flags in rows if not qos or name.lower() in qos)


def is_enforced(what: str) -> bool:
    """Whether Slurm looks at the `associations`, `limits` or `qos` of jobs; True when it does not tell."""
    try:
        enforced = set(settings().get("AccountingStorageEnforce", "all").lower().split(","))
    except UserError:
        return True
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
        """Minutes by qos, for those that limit it. All names in small letters, which Slurm does not tell apart."""
        for line in lines:
            limit = re.search(r"\bMaxWallPJ=(\d+)", line)
            account = re.match(r"ClusterName=\S+ Account=(\S+) UserName=(\w[^( ]*)\(", line)
            qos = re.match(r"QOS=([^( ]+)\(", line)
            if account and account[2] == getpass.getuser():
                minutes = float(limit[1]) if limit else float("inf")
                # There may be one for every partition.
                name = account[1].lower()
                self.of_accounts[name] = max(minutes, self.of_accounts.get(name, 0.0))
            elif qos and limit:
                self.of_qos[qos[1].lower()] = float(limit[1])

    def longest_stay(self, account: str | None, qos: set[str], of_partitions: list[str]) -> tuple[float, str]:
        """(minutes, whose limit that is) for a job that may go to any partition with these qos; small letters.

        A qos goes before the account. Of the partition's and the job's the longer counts, as a flag that is not told
        says which goes first; the qos of a job that names none is not told either. Infinite where it is not known.
        """
        return max(self._longest(account, qos, of_partition) for of_partition in of_partitions or [""])

    def _longest(self, account: str | None, qos: set[str], of_partition: str) -> tuple[float, str]:
        if len(qos) > 1 and not qos <= self.of_qos.keys():  # Slurm takes one that fits
            return float("inf"), ""
        named = qos or (self.of_qos.keys() if of_partition in self.of_qos else set())
        limits = [(self.of_qos[name], f"qos {name}") for name in {*named, of_partition} & self.of_qos.keys()]
        if not limits and (qos or not self.of_qos):
            own = self.of_accounts if account is None else {account: self.of_accounts.get(account, float("inf"))}
            limits = [(minutes, f"account {name}") for name, minutes in own.items()]
        return max(limits, default=(float("inf"), ""))
