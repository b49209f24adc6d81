"""The running test cluster, with a folder of its user's own for every test."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest
from real_cluster import FOLDER, JOB, Cluster, administer, start_cluster


@pytest.fixture(scope="session")
def running_cluster() -> None:
    """The cluster is up, with accounting."""
    start_cluster()


@pytest.fixture
def cluster(running_cluster: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster with a new folder of its user, in which the job file plain.py is; no job of the test survives it."""
    del running_cluster
    name = re.sub(r"\W+", "-", request.node.name)[:60]
    home = FOLDER / "home" / f"{name} ü"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / "plain.py").write_text(JOB)
    subprocess.run(["chown", "-R", "hpcuser:", home], check=True)
    yield Cluster(home)
    administer("scancel", "--user=hpcuser")
    deadline = time.monotonic() + 30
    while administer("squeue", "-h", "--user=hpcuser") and time.monotonic() < deadline:
        time.sleep(0.3)
    states = administer("sinfo", "-h", "-N", "-o", "%t").replace("*", "").split()  # a star: it does not respond
    if {"drain", "drng", "down"} & set(states):
        start_cluster()  # a test that failed would otherwise take the node from all that follow
