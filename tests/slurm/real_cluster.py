"""The test cluster, which `make slurm-up` has started: its user's commands, and what became of their jobs."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np

from hpcvision.rundir import RunDir, read_journal

ROOT = Path(__file__).parents[2]
TESTCLUSTER = ROOT / "slurm/testcluster"
FOLDER = Path(os.environ.get("HPCVISION_TESTCLUSTER", "/var/lib/hpcvision-testcluster"))
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE")
PATIENCE = 480.0  # seconds; the slowest test waits for about 150 of them

# No BatchNorm and one thread: the same on any number of processes.
JOB = """
from hpcvision.config import *

def config():
    return RunConfig(
        name="plain",
        model=AddNISTCNNConfig(width=0.25),
        data=DataConfig(source="synthetic"),
        train=TrainConfig(steps=30, global_batch_size=16, precision="fp32"),
        optim=OptimConfig(optimizer="sgd", learning_rate=0.05),
        cadence=CadenceConfig(log_every=10, evaluate_every=1_000_000, checkpoint_every=1_000_000),
    )
"""


@dataclass
class Cluster:
    """Commands of the cluster's unprivileged user on its login node, and of its administrator."""

    home: Path
    """A folder of the user's that login node and hosts share."""

    def run(self, *words: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of the user in `home`."""
        settings = {"HPCVISION_RUNS": "runs", "HPCVISION_DATA": str(self.home / "data"), **environment}
        done = subprocess.run(
            [TESTCLUSTER / "login.sh", "env", *(f"{key}={value}" for key, value in settings.items()), *map(str, words)],
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def hpcvision(self, *words: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("hpcvision", *words, check=check, **environment)

    def submit(self, *words: object, **environment: str) -> str:
        """The id of the last job that `hpcvision submit WORDS` submits."""
        said = self.hpcvision("submit", *words, "--cluster", "testcluster", **environment).stdout
        ids = re.findall(r" as job (\S+) on", said)
        assert ids, said
        return str(ids[-1])

    def refusal(self, *words: object, **environment: str) -> str:
        """The one line that `hpcvision WORDS` says before it ends with 2."""
        done = self.hpcvision(*words, check=False, **environment)
        assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        return line

    def state(self, job: str) -> str:
        return self.run("squeue", "-h", "--states=all", "-o", "%T", "-j", job).stdout.split("\n")[0]

    def wait(self, job: str, seconds: float = PATIENCE) -> str:
        """The state in which the job ended."""
        return self.until(lambda: (state := self.state(job)) in ENDED and state, f"the end of job {job}", seconds)

    def until(self, is_so: Callable[[], object], what: str, seconds: float = PATIENCE) -> str:
        """Wait until `is_so` gives something true, and give that."""
        deadline = time.monotonic() + seconds
        while not (found := is_so()):
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}\n{self.logs()}"
            time.sleep(0.5)
        return str(found)

    def logs(self) -> str:
        """The ends of all logs of jobs."""
        paths = [*self.home.rglob("*_log.out"), *self.home.glob("*.log")]
        return "\n".join(f"{path}: {path.read_text(errors='replace')[-1500:]}" for path in paths)

    def runs(self) -> list[RunDir]:
        return [RunDir(path.parent) for path in sorted((self.home / "runs").glob("*/config.json"))]

    def only_run(self) -> RunDir:
        (run,) = self.runs()
        return run

    def starts(self) -> int:
        """Stays of the only run."""
        return sum(event["event"] == "start" for run in self.runs() for event in read_journal(run.log))

    def reached(self, step: int) -> bool:
        """True when the journal of the only run tells of that step."""
        return any(event.get("step", 0) >= step for run in self.runs() for event in read_journal(run.log))


@cache
def steps_in(seconds: float) -> int:
    """About as many steps of the job, 96 images each, as this machine takes in that time when nothing else runs.

    With fixed numbers of steps a slow machine needed twice the time limits that the tests count on. Of the intervals
    between two points the shortest tenth counts, so that what else runs meanwhile does not make later runs too short.
    """
    with TemporaryDirectory() as folder:
        Path(folder, "plain.py").write_text(JOB)
        words = ["plain.py", "train.steps=400", "train.global_batch_size=96", "--processes", "1", "--runs", "."]
        train_here(Path(folder), *words)
        (path,) = Path(folder).glob("*/results.h5")
        with h5py.File(path) as file:
            intervals = np.diff(file["train/seconds"][1:]) / np.diff(file["train/step"][1:])
    return int(seconds / np.quantile(intervals, 0.1)) // 100 * 100


def train_here(folder: Path, *words: str) -> None:
    """`hpcvision train WORDS` in the folder, on one thread and without Slurm."""
    command = [ROOT / ".venv/bin/hpcvision", "train", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def administer(*words: str) -> str:
    """A command of root with the cluster's settings."""
    environment = os.environ | {"SLURM_CONF": str(FOLDER / "slurm.conf")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def start_cluster(*options: str) -> None:
    """Start what is not running of the cluster."""
    subprocess.run([TESTCLUSTER / "start.sh", *options], check=True, capture_output=True, timeout=120)


def exact_content(path: Path) -> dict[str, bytes]:
    """All weights, and the losses of the curve, as bytes."""
    content: dict[str, bytes] = {}
    with h5py.File(path) as file:

        def take(name: str, item: h5py.HLObject) -> None:
            if isinstance(item, h5py.Dataset) and (name.startswith("weights/") or name == "train/loss"):
                content[name] = item[()].tobytes()

        file.visititems(take)
    assert content
    return content
