"""A Ray of one's own: inside the allocation, unreachable for others, and gone without a trace afterwards."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hpcvision.place import Place
from hpcvision.stopping import StopRequest

# Trials exchange a few numbers; Ray wants at least 75 MB.
OBJECT_STORE_BYTES = 100 * 2**20
POLL_SECONDS = 0.2
RAYS_OWN = "r"
LONGEST_PLACE = 24  # letters of a folder for Ray, whose sockets' names below it take up to 77 of 107


def short_folder() -> str:
    """Where a Ray of one machine puts its files: $TMPDIR, as a cluster's profile sets it, or if that is long /tmp."""
    place = os.environ.get("TMPDIR", "")
    return place if len(place) <= LONGEST_PLACE and Path(place).is_absolute() and Path(place).is_dir() else "/tmp"


class PrivateRay:
    """A Ray of this process while the `with` block lasts; no process and no file of it is left, however that ends.

    meeting: a file that tells the other nodes of a Slurm job how to join, for this user's eyes only; None: there are
    none.
    """

    def __init__(self, *, cpus: int, gpus: int, meeting: Path | None = None) -> None:
        self.cpus, self.gpus, self.meeting = cpus, gpus, meeting
        self.folder: Path | None = None
        self._janitor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PrivateRay":
        if self.meeting:
            for old in self.meeting.parent.glob("ray-*.json"):
                old.unlink(missing_ok=True)
        return self

    def start(self) -> Path:
        """Start it unless it runs, as a sweep that has ended needs none; its folder, which goes with it."""
        if self.folder:
            return self.folder
        import ray

        os.environ.pop("RAY_ADDRESS", None)  # never join somebody else's cluster
        # A failed trial is told in one line, and its traceback is in its folder.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        # Short: Ray's sockets live there, and their names may have at most 107 characters. Ray opens its own folder to
        # everybody, so it gets one inside ours.
        self.folder = Path(tempfile.mkdtemp(prefix="hv", dir="/tmp" if self.meeting else short_folder()))
        self._janitor = start_janitor(self.folder)
        handlers = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
        be_deaf()
        ray.init(
            address="local",
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(self.folder / RAYS_OWN),
            **({"_node_ip_address": own_address()} if self.meeting else {}),
        )
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself, and would end without saving
            signal.signal(number, handler)
        if self.meeting:
            address = ray.get_runtime_context().gcs_address
            token = os.environ["RAY_AUTH_TOKEN"]
            announce(self.meeting, {"address": address, "token": token, "folder": str(self.folder)})
        return self.folder

    def __exit__(self, *exception: object) -> None:
        if self.meeting:
            announce(self.meeting, {})
        if not self._janitor:
            return
        import ray

        ray.shutdown()
        end_janitor(self._janitor)


def lend_node(meeting: Path, *, cpus: int, gpus: int) -> None:
    """Be a node of the Ray that `meeting` tells of, from when it does until the sweep's driver has ended."""
    be_deaf()
    there = read_meeting(meeting)
    while there is None:
        time.sleep(POLL_SECONDS)
        there = read_meeting(meeting)
    if not there:  # all trials had ended before
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a task that fails on its way out would end the driver
        return
    folder = Path(there["folder"])
    folder.mkdir(mode=0o700, exist_ok=True)
    janitor = start_janitor(folder)
    words: dict[str, Any] = {
        "--address": there["address"],
        "--node-ip-address": own_address(),
        "--num-cpus": cpus,
        "--num-gpus": gpus,
        "--object-store-memory": OBJECT_STORE_BYTES,
        "--temp-dir": folder / RAYS_OWN,
        # Free ones, instead of the same numbers for every job on the node.
        "--min-worker-port": 0,
        "--max-worker-port": 0,
    }
    said = folder / "said"
    with said.open("w") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *(f"{k}={v}" for k, v in words.items())],
            env=os.environ | {"RAY_AUTH_TOKEN": there["token"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    # The driver is told, too, and says when it has saved; a task that fails before would end it at once.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while read_meeting(meeting) == there and node.poll() is None:
        time.sleep(POLL_SECONDS)
    if read_meeting(meeting) == there:
        last = (said.read_text(errors="replace").strip().splitlines() or [""])[-1]
        print(f"hpcvision: Ray has ended on {socket.gethostname()}: {last}", file=sys.stderr, flush=True)
    while read_meeting(meeting) == there:  # srun ends all tasks some minutes after the first that ends
        time.sleep(POLL_SECONDS)
    end_janitor(janitor)  # `ray stop` would wait 30 s for a head that is gone


def start_janitor(folder: Path) -> "subprocess.Popen[bytes]":
    """The process that leaves nothing of the Ray in `folder` when this one has ended."""
    command = [sys.executable, "-m", "hpcvision.sweep.janitor", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def end_janitor(janitor: "subprocess.Popen[bytes]") -> None:
    """Let it do its work, and wait."""
    assert janitor.stdin, "a pipe was asked for"
    janitor.stdin.close()
    janitor.wait()


def be_deaf() -> None:
    """Ignore the signals with which Slurm tells all processes of a job of its end: Ray's own would die of them."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def meeting_of(folder: Path, place: Place) -> Path:
    """Where the tasks of this stay of a Slurm job meet."""
    return folder / f"ray-{place.job_id}-{place.restart}.json"


def announce(path: Path, there: dict[str, str]) -> None:
    """Tell the other nodes; nobody but this user can read it."""
    beside = path.with_suffix(".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(there, file)
    beside.replace(path)


def read_meeting(path: Path) -> dict[str, str] | None:
    """What was announced; None when nothing was."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def own_address() -> str:
    """This node's address as Slurm's other nodes know it; a node may have several."""
    address = socket.gethostbyname(os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    if address.startswith("127."):  # a name that Debian's installer gives to the node itself
        import ray

        address = str(ray.util.get_node_ip_address())
    return address
