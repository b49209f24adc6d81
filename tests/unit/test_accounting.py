"""What is made of the answers of Slurm's accounting; fake commands give those that the test cluster does not."""

import getpass

import pytest

from hpcvision.launch import accounting, queue, slurm
from hpcvision.launch.batch import Placement
from hpcvision.launch.detect import choose_account
from hpcvision.launch.profile import Profile

ASSOCIATION = (
    "ClusterName=c Account={account} UserName={user}(1001) Partition={partition} Priority=0 MaxWallPJ={limit} x="
)
QOS = "QOS={name}(1) UsageRaw=0.000000 MaxWallPJ={limit} MaxTRESPJ= "


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """A function that puts a fake scontrol into PATH, which tells these rules and no others."""

    def fake(lines, enforced="associations,limits,qos"):
        (tmp_path / "manager").write_text("\n".join(lines) + "\n")
        (tmp_path / "config").write_text(f"AccountingStorageEnforce = {enforced}\n")
        (tmp_path / "scontrol").write_text(
            f'#!/bin/bash\ncase "$2" in assoc_mgr) cat {tmp_path}/manager ;; config) cat {tmp_path}/config ;; esac\n'
        )
        (tmp_path / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return accounting.Manager()

    return fake


def association(account, limit, partition="", user=None):
    return ASSOCIATION.format(account=account, limit=limit, partition=partition, user=user or getpass.getuser())


@pytest.mark.parametrize(
    "account, qos, of_partitions, longest",
    [
        ("lab", set(), [], (60, "account lab")),
        (None, set(), ["n/a"], (90, "account other")),
        ("lab", {"free"}, [], (60, "account lab")),
        ("lab", set(), ["free"], (60, "account lab")),
        ("unknown", set(), [], (float("inf"), "account unknown")),
    ],
)
def test_without_limits_of_a_qos_the_longest_stay_is_that_of_the_account(
    account, qos, of_partitions, longest, slurm_says
):
    manager = slurm_says([association("lab", 60), association("other", 90), association("lab", 5, user="me2")])
    assert manager.longest_stay(account, qos, of_partitions) == longest


@pytest.mark.parametrize(
    "qos, of_partitions, longest",
    [
        ({"short"}, [], (30, "qos short")),
        ({"free"}, [], (60, "account lab")),
        ({"short"}, ["short"], (30, "qos short")),
        ({"free"}, ["short"], (30, "qos short")),
        ({"long"}, ["short"], (600, "qos long")),  # the qos may have the flag that puts it first
        ({"short"}, ["n/a", "long"], (600, "qos long")),  # the job may go to either partition
        ({"short", "long"}, [], (600, "qos long")),  # and take either qos
        ({"short", "free"}, [], (float("inf"), "")),
        (set(), ["short"], (600, "qos long")),  # the job's default qos is not told
        (set(), [], (float("inf"), "")),
    ],
)
def test_a_limit_of_a_qos_goes_before_that_of_the_account(qos, of_partitions, longest, slurm_says):
    rules = [QOS.format(name=name, limit=limit) for name, limit in (("Short", 30), ("long", 600), ("free", ""))]
    manager = slurm_says([association("Lab", 60), *rules])
    assert manager.longest_stay("lab", qos, of_partitions) == longest


def test_of_several_associations_of_one_account_the_longest_counts(slurm_says):
    manager = slurm_says([association("lab", 60, "gpu"), association("lab", 90, "big"), association("lab", 10, "test")])
    assert manager.longest_stay("lab", set(), []) == (90, "account lab")


@pytest.mark.parametrize(
    "enforced, refused", [("associations,limits", True), ("safe", True), ("associations,qos", False), ("none", False)]
)
def test_a_limit_that_slurm_does_not_look_at_refuses_no_job(enforced, refused, slurm_says):
    manager = slurm_says([association("lab", 60)], enforced)
    arguments = Profile(account="Lab"), Placement(1, 1, 0, 61), {}, manager
    if refused:
        with pytest.raises(queue.UserError, match="--minutes=61 is above the 60 of account lab; give fewer"):
            slurm.check_stay(*arguments)
    else:
        slurm.check_stay(*arguments)


def test_a_site_without_accounting_has_no_limits(slurm_says):
    manager = slurm_says(["slurm_load_assoc_mgr_info error: Slurm accounting storage is disabled"])
    assert manager.longest_stay("lab", {"any"}, []) == (float("inf"), "account lab")
    assert manager.of_accounts == {}


def partition(**facts):
    return {"gpu": {"TotalNodes": "4", "MaxTime": "01:00:00", "Default": "YES"} | facts}


@pytest.mark.parametrize(
    "allowed, qos, enforced, refused",
    [
        ("Normal", "normal", "qos", False),
        ("normal", "a,Normal", "qos", False),
        ("a,b", "normal", "qos", True),
        ("a,b", "normal", "limits", False),
    ],
)
def test_a_qos_is_the_same_in_capitals_and_one_of_several_is_enough(allowed, qos, enforced, refused, slurm_says):
    slurm_says([], enforced)
    arguments = Profile(qos=qos), Placement(1, 1, 0, 60), partition(AllowQos=allowed)
    if refused:
        with pytest.raises(queue.UserError, match="partition gpu does not take qos 'normal'; set qos to one of a, b"):
            slurm.check_place(*arguments)
    else:
        slurm.check_place(*arguments)


@pytest.mark.parametrize("flags, refused", [("DenyOnLimit", True), ("DenyOnLimit,PartitionMaxNodes", False)])
def test_a_qos_that_may_exceed_the_nodes_of_a_partition_refuses_no_job(flags, refused, tmp_path, monkeypatch):
    (tmp_path / "sacctmgr").write_text(f"#!/bin/sh\necho 'big|{flags}'\n")
    (tmp_path / "sacctmgr").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    arguments = Profile(qos="Big"), Placement(2, 1, 0, 60), partition(MaxNodes="1")
    if refused:
        with pytest.raises(queue.UserError, match="--nodes=2 is above the 1 of partition gpu"):
            slurm.check_place(*arguments)
    else:
        slurm.check_place(*arguments)


def test_a_new_profile_takes_the_account_that_the_partition_allows_whatever_its_capitals():
    assert choose_account(["biology", "physics"], None, {"AllowAccounts": "Physics"}, lambda *_: None) == "physics"


@pytest.mark.parametrize("allowed, first", [("ALL", "stud"), ("prof,stud", "stud"), ("prof,lab", "lab")])
def test_a_new_profile_takes_the_users_own_account_before_others_that_come_first_in_the_alphabet(allowed, first):
    offered, facts = [], {"AllowAccounts": allowed}
    chosen = choose_account(["lab", "prof", "stud"], "stud", facts, lambda _, choices: offered.append(choices))
    assert chosen == offered[0][0] == first
