"""Outlives a sweep's driver by a moment, however that ends, and leaves nothing of its Ray: no process, no file.

`python -m hpcvision.sweep.janitor FOLDER` waits until its standard input is closed, which the system does when the
driver is gone. Ray's own agents stayed for good when a driver was killed (Ray 2.60).
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

TRIES = 40  # of 50 ms; a process that is killed may still be starting another


def end_processes(folder: Path) -> None:
    """Kill what of Ray's is there: all of its processes name its folder in their command or environment."""
    for _ in range(TRIES):
        left = processes_of(folder)
        if not left:
            return
        for number in left:
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


def processes_of(folder: Path) -> list[int]:
    """Processes of this user, but this one, whose command line or environment names a file below `folder`."""
    name, found = f"{folder}/".encode(), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                if name in (process / "cmdline").read_bytes() or name in (process / "environ").read_bytes():
                    found.append(int(process.name))
    return found


def main() -> None:
    """Wait, kill, remove."""
    folder = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the driver, which ends first
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    end_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
