"""What would go wrong on a cluster, found on its login node before a job waits for it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch import accounting, queue
from hpcvision.launch.batch import Placement, script
from hpcvision.launch.finding import Finding
from hpcvision.launch.hardware import driver, graphics_cards, setup_lines
from hpcvision.launch.profile import Profile
from hpcvision.launch.space import disk_of
from hpcvision.rundir import data_folder

SHARED_DISKS = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "panfs", "wekafs", "afs", "cifs", "smb", "9p", "fuse")
ASKING_SECONDS, EACH_SECONDS = 14.0, 6.0  # of 20, as Python and torch take some
LEAST_GB, LEAST_FILES = 5.0, 10_000  # a run takes 2 to 20 MB and a dozen files


def examine(profile: Profile, runs: Path) -> Iterator[Finding]:
    """All findings, as they come: 20 at most, within 20 seconds; what has not answered by then is told as that."""
    with queue.answers_by(time.monotonic() + ASKING_SECONDS, each=EACH_SECONDS):
        yield from findings(profile, runs)


def findings(profile: Profile, runs: Path) -> Iterator[Finding]:
    """As `examine`, however long it takes."""
    if profile.executor == "slurm":
        try:
            queue.check_there("scontrol")
        except UserError as error:
            yield Finding("FAIL", "slurm", str(error))
        else:
            yield from slurm(profile)
            found, torch = setup_lines(profile)
            yield found
            yield from graphics_cards(profile, torch)
            if profile.gpus_per_node and torch:
                place = Placement(profile.nodes, profile.tasks_per_node, profile.gpus_per_node, 1)
                yield driver(profile, place, torch)
            yield shared(runs, profile)
    yield room(runs)
    yield from staged(profile)


def slurm(profile: Profile) -> Iterator[Finding]:
    """Commands, accounting, account, partition, limits, and what sbatch would say."""
    from hpcvision.launch.slurm import check_account, check_place, check_stay

    try:
        config = queue.settings()
    except UserError as error:
        yield Finding("FAIL", "slurm", str(error))
        return
    yield Finding("PASS", "slurm", f"{config.get('SLURM_VERSION', '')} on {config.get('ClusterName', '')}")
    yield accounts_are_kept()
    place = Placement(profile.nodes, profile.tasks_per_node, profile.gpus_per_node, profile.time_limit_minutes)
    try:
        known, manager = queue.partitions(), accounting.Manager()
    except UserError as error:
        yield Finding("FAIL", "slurm", str(error))
        return
    requeued = "unfinished runs queue themselves again" if profile.requeue else "submit with --chain N for more"
    checks = {
        "account": (partial(check_account, profile, manager), profile.account or "the site's default"),
        "partition": (partial(check_place, profile, place, known), profile.partition or "the site's default"),
        "time": (
            partial(check_stay, profile, place, known, manager),
            f"{place.minutes} minutes are allowed; {requeued}",
        ),
    }
    for subject, (check, well) in checks.items():
        try:
            check()
        except queue.NoAnswer as error:
            yield Finding("WARN", subject, str(error))
        except UserError as error:
            yield Finding("FAIL", subject, f"{error}; change it in the profile")
        else:
            yield Finding("PASS", subject, well)
    yield jobs_at_once(profile)
    largest = int(config.get("MaxArraySize", "1001")) - 1
    if profile.max_array_size > largest:
        yield Finding("FAIL", "arrays", f"the cluster takes {largest} tasks; set max_array_size = {largest}")
    else:
        yield Finding("PASS", "arrays", f"up to {profile.max_array_size} of the cluster's {largest} tasks")
    try:
        text = script("doctor", profile, place, ["-m", "hpcvision"], log="/dev/null")
        said = queue.test_only(text, profile.submit_command)
    except queue.NoAnswer as error:
        yield Finding("WARN", "sbatch", str(error))
    except UserError as error:
        yield Finding("FAIL", "sbatch", f"{error}; compare the profile with a batch script that works here")
    else:
        yield Finding("PASS", "sbatch", said)


def accounts_are_kept() -> Finding:
    """Whether sacct answers."""
    failed = "sacct gives no answer: why a job died is known for some minutes only; look soon with hpcvision status"
    try:
        answer = queue.ask("sacct", "--noheader")
    except UserError:
        return Finding("WARN", "accounting", failed)
    return (
        Finding("WARN", "accounting", failed) if answer.returncode else Finding("PASS", "accounting", "sacct answers")
    )


def jobs_at_once(profile: Profile) -> Finding:
    """The profile's limit on jobs in the queue against that of the qos, and how many there are."""
    from hpcvision.launch.slurm import qos_of

    accounts = accounting.accounts()
    own = accounts.get(profile.account.lower(), set()) if profile.account else set().union(*accounts.values())
    limits = accounting.submit_limits(qos_of(profile) or own)
    limit, said = min(limits.values(), default=None), profile.max_submitted_jobs
    try:
        there = f"you have {queue.own_jobs()} in the queue"
    except UserError as error:
        return Finding("WARN", "jobs", str(error))
    if limit is None or not accounting.is_enforced("limits"):
        return Finding("PASS", "jobs", f"no limit of a qos is known; {there}")
    whose = " and ".join(f"{count} with qos {name}" for name, count in sorted(limits.items()))
    if said is None or (said > limit and len(limits) == 1):
        words = f"you may have {whose}; set max_submitted_jobs = {limit} in the profile, so that more runs share jobs"
        return Finding("FAIL" if said else "WARN", "jobs", words)
    return Finding("PASS", "jobs", f"up to {said}, you may have {whose}; {there}")


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
        words = f"only {words}, and a run takes 2 to 20 MB and a dozen files; see what fills it: du -sh {there}/*"
        return Finding("WARN", "disk", words)
    return Finding("PASS", "disk", words)


def quota() -> str:
    """Which limit of the user's is exceeded, in words, or nothing; quota ends with 1 then."""
    if shutil.which("quota") is None:
        return ""
    try:
        done = subprocess.run(["quota", "-q"], capture_output=True, text=True, timeout=queue.seconds_left())
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
