"""What is made of the answers of Slurm's accounting; fake commands give those that the test cluster does not."""

import getpass

import pytest

from hpcvision.launch import accounting, queue, slurm
from hpcvision.launch.batch import Placement
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
    "account, qos, qos_of_partition, longest",
    [
        ("lab", None, None, (60, "account lab")),
        (None, None, None, (90, "account other")),
        ("lab", "free", None, (60, "account lab")),
        ("lab", None, "free", (60, "account lab")),
        ("unknown", None, None, (float("inf"), "account unknown")),
    ],
)
def test_without_limits_of_a_qos_the_longest_stay_is_that_of_the_account(
    account, qos, qos_of_partition, longest, slurm_says
):
    manager = slurm_says([association("lab", 60), association("other", 90), association("lab", 5, user="me2")])
    assert manager.longest_stay(account, qos, qos_of_partition) == longest


@pytest.mark.parametrize(
    "qos, qos_of_partition, longest",
    [
        ("short", None, (30, "qos short")),
        ("free", None, (60, "account lab")),
        (None, "short", (30, "qos short")),
        ("long", "short", (600, "qos long")),  # the qos may have the flag that puts it first
        (None, None, (float("inf"), "")),  # the job's default qos is not told
    ],
)
def test_a_limit_of_a_qos_goes_before_that_of_the_account(qos, qos_of_partition, longest, slurm_says):
    rules = [QOS.format(name=name, limit=limit) for name, limit in (("short", 30), ("long", 600), ("free", ""))]
    manager = slurm_says([association("lab", 60), *rules])
    assert manager.longest_stay("lab", qos, qos_of_partition) == longest


def test_of_several_associations_of_one_account_the_longest_counts(slurm_says):
    manager = slurm_says([association("lab", 60, "gpu"), association("lab", 90, "big"), association("lab", 10, "test")])
    assert manager.longest_stay("lab", None, None) == (90, "account lab")


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
    assert manager.longest_stay("lab", "any", None) == (float("inf"), "account lab")
    assert manager.of_accounts == {}
