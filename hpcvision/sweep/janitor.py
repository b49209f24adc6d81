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


def end_processes(folder: Path, *, driver: int) -> None:
    """Kill what of Ray's is there."""
    for _ in range(TRIES):
        left = [number for number in processes_of(folder) if number not in (driver, os.getpid())]
        if not left:
            return
        for number in left:
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


def processes_of(folder: Path) -> list[int]:
    """Processes of this user that name a file below `folder` in their command, or have one open, as the driver has.

    Ray's agents and trials overwrite their command with a title, and their environment with it; their logs stay open.
    """
    below, found = f"{folder}/", []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if below.encode() in (process / "cmdline").read_bytes() or has_open(process, below):
                    found.append(int(process.name))
    return found


def has_open(process: Path, below: str) -> bool:
    """True when a process has a file open whose name begins with `below`."""
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(descriptor.readlink()).startswith(below):
                return True
    return False


def main() -> None:
    """Wait, kill, remove."""
    folder, driver = Path(sys.argv[1]), os.getppid()
    # Meant for the driver, which ends first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    end_processes(folder, driver=driver)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
