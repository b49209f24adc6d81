"""When a sweep stops before its end: signals and the deadline ask its trials to, wherever they run."""

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from hpcvision.stopping import StopRequest, leave_seconds


class Stopping:
    """Asks all trials to save and stop, wherever they are, when the sweep is asked to."""

    def __init__(self, file: Path, *, deaf_afterwards: bool = False) -> None:
        self.file = file
        self.asked = False
        self.deaf_afterwards = deaf_afterwards
        """Signals are ignored when the block ends: Slurm would take a sweep that one ends as it exits for failed."""
        end = float(os.environ.get("SLURM_JOB_END_TIME", "inf"))
        self.deadline = end - leave_seconds(end - time.time())
        """Seconds since the epoch at which to ask; trials that are short would see their end too late."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        self.file.unlink(missing_ok=True)
        for number in StopRequest.SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self.deaf_afterwards else handler)
        self.file.unlink(missing_ok=True)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask()

    def look(self) -> None:
        """Ask when the time has come."""
        if time.time() >= self.deadline:
            self.ask()

    def ask(self) -> None:
        """Stop."""
        self.asked = True
        with contextlib.suppress(OSError):
            self.file.touch()
