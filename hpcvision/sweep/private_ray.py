"""A Ray of one's own: inside the allocation, unreachable for others, and gone without a trace afterwards."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from hpcvision.stopping import StopRequest

# Trials exchange a few numbers; Ray wants at least 75 MB.
OBJECT_STORE_BYTES = 100 * 2**20


class PrivateRay:
    """A Ray of this process while the `with` block lasts; no process and no file of it is left, however that ends."""

    def __init__(self, *, cpus: int, gpus: int) -> None:
        self.cpus, self.gpus = cpus, gpus
        self.folder: Path | None = None
        self._janitor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PrivateRay":
        return self

    def start(self) -> Path:
        """Start it unless it runs, as a sweep that has ended needs none; its folder, which goes with it."""
        if self.folder:
            return self.folder
        import ray

        os.environ.pop("RAY_ADDRESS", None)  # never join somebody else's cluster
        # A failed trial is told in one line, and its traceback is in its folder.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        # Short: Ray's sockets live there, and their names may have at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="hv", dir="/tmp"))
        command = [sys.executable, "-m", "hpcvision.sweep.janitor", str(self.folder)]
        self._janitor = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        handlers = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
        ray.init(
            address="local",
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(self.folder),
        )
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself, and would end without saving
            signal.signal(number, handler)
        return self.folder

    def __exit__(self, *exception: object) -> None:
        if not self._janitor:
            return
        import ray

        ray.shutdown()
        assert self._janitor.stdin, "a pipe was asked for"
        self._janitor.stdin.close()
        self._janitor.wait()
