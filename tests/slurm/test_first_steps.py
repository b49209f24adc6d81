"""`hpcvision init` and `hpcvision doctor` on a cluster that they have never seen."""

import os
import pty
import re
import subprocess

import pytest
from real_cluster import TESTCLUSTER

pytestmark = pytest.mark.slurm


def test_init_writes_a_profile_that_doctor_finds_well_and_that_submits(cluster):
    said = cluster.hpcvision("init", "--partition", "gpu", "-o", "here.toml").stdout
    written = (cluster.home / "here.toml").read_text()
    assert said.startswith(written)
    for line in ('account = "students"', 'partition = "gpu"', "max_array_size = 10", "max_submitted_jobs = 30"):
        assert re.search(f"^{re.escape(line)} ", written, re.MULTILINE), written
    checked = cluster.hpcvision("doctor", "--cluster", "here.toml", check=False).stdout
    # torch may have kernels or not; the cards of this cluster are files, without a driver.
    assert not re.search(r"^FAIL +(?!gpus)", checked, re.MULTILINE), checked
    assert re.search(r"^WARN +driver +not known \(.*nvidia-smi.*No such file", checked, re.MULTILINE), checked
    job = cluster.hpcvision("submit", "plain.py", "--cluster", "here.toml", "--gpus-per-node", 0).stdout
    assert cluster.wait(re.findall(r" as job (\d+) on", job)[0]) == "COMPLETED"


def test_init_asks_a_person_only_for_what_it_cannot_read(cluster):
    ours, theirs = pty.openpty()
    words = [TESTCLUSTER / "login.sh", "hpcvision", "init", "-o", "here.toml"]
    with subprocess.Popen(words, cwd=cluster.home, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.write(ours, b"high\n")
        said, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    # Three partitions have GPUs, and of the user's two accounts they take one.
    assert said.count("]:") == 1, said
    assert said.startswith("partition (test, gpu, high) [test]: "), said
    written = (cluster.home / "here.toml").read_text()
    assert re.search('^partition = "high" ', written, re.MULTILINE)
    assert re.search('^account = "students" ', written, re.MULTILINE)


def test_init_does_not_overwrite_a_profile(cluster):
    (cluster.home / "here.toml").write_text("mine")
    assert "here.toml exists; remove it first" in cluster.refusal("init", "--partition", "gpu", "-o", "here.toml")
    assert (cluster.home / "here.toml").read_text() == "mine"


def test_doctor_needs_at_most_20_lines(cluster):
    lines = cluster.hpcvision("doctor", "--cluster", "testcluster").stdout.splitlines()
    assert len(lines) <= 20
    assert all(re.match(r"(PASS|WARN) +\w+ +\S", line) for line in lines)


@pytest.mark.parametrize(
    "line, found",
    [
        ('partition = "nope"', r"FAIL +partition +there is no partition 'nope' on this cluster; choose one of test"),
        ('partition = "gpu"\naccount = "nobody"', r"FAIL +account +you have no account 'nobody' here"),
        (
            'partition = "gpu"\nsetup = ["module load cuda"]',
            r"FAIL +setup +.*module: command not found; mend the lines",
        ),
        pytest.param(
            'partition = "gpu"\nmax_array_size = 500',
            r"FAIL +arrays +the cluster takes 10 tasks; set max_array_size = 10",
            marks=pytest.mark.long,
        ),
        pytest.param(
            'partition = "gpu"\ntime_limit_minutes = 9999',
            r"FAIL +time +--minutes=9999 is above the 1440",
            marks=pytest.mark.long,
        ),
    ],
)
def test_doctor_names_what_is_wrong_and_how_to_mend_it_and_ends_with_2(cluster, line, found):
    account = "" if "account" in line else 'account = "students"\n'
    (cluster.home / "mine.toml").write_text(account + line + "\n")
    done = cluster.hpcvision("doctor", "--cluster", "mine.toml", check=False)
    assert done.returncode == 2
    assert re.search(found, done.stdout), done.stdout


def test_doctor_fails_for_runs_in_a_folder_that_nodes_cannot_see(cluster):
    done = cluster.hpcvision("doctor", "--cluster", "testcluster", "--runs", "/tmp/mine", check=False)
    assert done.returncode == 2
    assert re.search(r"FAIL +runs +the nodes cannot see /tmp/mine", done.stdout)
