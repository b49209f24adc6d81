"""A real Slurm on this machine: munged, slurmctld and one slurmd, in a folder of their own, ended with the tests."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SLURM_CONF = """
ClusterName=hpcvision
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={controller_port}
SlurmdPort={node_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=test Nodes=node0 Default=YES MaxTime=120 State=UP
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """The commands of the running test cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}

    def run(self, *command: str, environment: dict[str, str] | None = None) -> str:
        """Standard output of a command that must succeed."""
        done = subprocess.run(
            command, env=self.environment | (environment or {}), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """Slurm's word for the job, such as RUNNING or COMPLETED."""
        shown = self.run("scontrol", "show", "job", job, "--oneliner")
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)["JobState"]

    def wait(self, job: str, seconds: float) -> str:
        """The state in which the job ended."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING"):
            assert time.monotonic() < deadline, f"job {job} is still {state} after {seconds:.0f} s"
            time.sleep(0.5)
        return state


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: a socket's path may have 107 characters, and munged wants a folder that others cannot write.
    folder = Path(f"/tmp/hvslurm{os.getpid()}")
    folder.mkdir(mode=0o755)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().split(".")[0]
    ports = {"controller_port": free_port(), "node_port": free_port()}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(host=host, folder=folder, user=getpass.getuser(), **ports))
    cluster = Cluster(folder)
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "node0"],
    ]
    running = []
    try:
        for command in daemons:
            log = (folder / f"{command[0]}.out").open("wb")
            running.append(subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log))
            time.sleep(0.5)
        deadline = time.monotonic() + 60
        while (
            "idle"
            not in subprocess.run(
                ["sinfo", "-h", "-o", "%t"], env=cluster.environment, capture_output=True, text=True
            ).stdout
        ):
            logs = "".join(path.read_text()[-500:] for path in folder.glob("*.out"))
            assert time.monotonic() < deadline, f"Slurm did not come up: {logs}"
            time.sleep(0.3)
        yield cluster
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)
