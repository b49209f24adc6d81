"""The test cluster itself: started twice it is one, and stopped it leaves nothing behind."""

import subprocess
from pathlib import Path

import pytest
from real_cluster import FOLDER, TESTCLUSTER, start_cluster

pytestmark = pytest.mark.slurm

DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "node0", "node1")


def daemons():
    return {name: int((FOLDER / f"{name}.pid").read_text()) for name in DAEMONS}


def processes_of_the_cluster():
    """Numbers of all processes with one of the daemons above them, and of the daemons; zombies are none."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    found = set(daemons().values()) & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def said(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_started_again_it_is_the_same_cluster(cluster):
    before = daemons()
    start_cluster()
    assert daemons() == before
    assert cluster.run("sinfo", "-h", "-o", "%D %t", "-p", "gpu").stdout == "2 idle\n"


WITHOUT = """
cd "$0" && mkdir real shown && mount --bind /usr/sbin real && ln -s "$PWD"/real/* shown
rm shown/slurmctld shown/munged && mount --bind shown /usr/sbin && cd / && exec "$1"
"""


def test_packages_that_are_missing_are_named_with_the_line_that_installs_them(tmp_path):
    # In a view of the disk of its own, in which two commands are not there.
    words = ["unshare", "--mount", "bash", "-e", "-c", WITHOUT, tmp_path, TESTCLUSTER / "start.sh"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    install = "apt-get install --no-install-recommends slurmctld munge"
    assert done.stderr == f"start.sh: missing packages; install them with: {install}\n"


@pytest.fixture
def stopped_cluster(cluster):
    """The cluster, which the test stops; it runs again afterwards."""
    yield cluster
    start_cluster()


def test_stopped_it_leaves_no_process_no_file_no_network_and_no_user_also_with_a_job_that_runs(stopped_cluster):
    cluster = stopped_cluster
    user_was_made = (FOLDER / "user-added").exists()
    job = cluster.submit("plain.py", "train.steps=10000")
    cluster.until(lambda: cluster.reached(10), "the first steps")
    pids = processes_of_the_cluster()
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
    assert any("submitit.core._submit" in command for command in commands), (job, commands)
    subprocess.run([TESTCLUSTER / "stop.sh"], check=True, timeout=60)
    assert not FOLDER.exists()
    assert [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()] == []  # which a zombie has not
    assert "hv-" not in said("ip", "netns", "list") + said("ip", "-o", "link")
    if user_was_made:
        assert subprocess.run(["id", "hpcuser"], capture_output=True).returncode != 0
    assert subprocess.run([TESTCLUSTER / "stop.sh"], timeout=60).returncode == 0
