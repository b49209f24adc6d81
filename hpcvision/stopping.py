"""When a process stops before its last step, and how it ends. Imports no torch, to be early."""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType

INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended

# Codes of a stop beside the numbers of signals.
DEADLINE, RUNG, ASKED = 1000, 1001, 1002
REASONS = {DEADLINE: "deadline", RUNG: "rung", ASKED: "sweep stopped"}


def leave_seconds(stay: float) -> float:
    """How long before the end of a stay a run stops, in seconds: a minute, or a quarter of a short stay.

    The checkpoint of a 97,584-parameter run takes 9 ms on a local disk; the last step, an evaluation and a slow shared
    disk come on top.
    """
    return min(60.0, stay / 4)


class StopRequest:
    """Remembers that this process was asked to stop; the training loop asks at step boundaries.

    SIGUSR1, SIGUSR2 and SIGTERM ask; so does the deadline. The handler only sets a number: saving inside a handler
    runs in the middle of backward() and corrupts or hangs. Ctrl-C asks too, and a second Ctrl-C ends at once.
    """

    SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

    def __init__(
        self,
        deadline: float | None = None,
        *,
        pause_at: int | None = None,
        file: Path | None = None,
        deaf_afterwards: bool = False,
    ) -> None:
        self.deadline = deadline
        """Seconds since the epoch at which to stop, or None."""
        self.pause_at = pause_at
        """Step at which a trial of a sweep is compared with the others, or None."""
        self.file = file
        """A file that asks this process to stop by being there: a sweep's processes may be on other machines."""
        self.deaf_afterwards = deaf_afterwards
        """Signals are ignored when the block ends, as nothing but the end of the process follows."""
        self.received = 0
        """Number of the signal that came, or 0."""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # Beside the main thread Python allows no signal handlers.
        here = threading.current_thread() is threading.main_thread()
        for number in self.SIGNALS if here else ():
            # What the starter had ignored, as nohup and `submit` do for a run in the background, stays ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        # The launcher starts its processes with these blocked: one that comes while torch is imported waits for now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self.deaf_afterwards else handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    @property
    def code(self) -> int:
        """0 to go on; else the signal's number, DEADLINE or ASKED."""
        if self.received:
            return self.received
        if self.deadline is not None and time.time() >= self.deadline:
            return DEADLINE
        return ASKED if self.file is not None and self.file.exists() else 0

    def pause(self, step: int) -> int:
        """RUNG when a trial is to be compared after this step, else 0; the same on all ranks."""
        return RUNG if step == self.pause_at else 0

    @staticmethod
    def reason(code: int) -> str:
        """The word for the step ledger."""
        return REASONS.get(code) or signal.Signals(code).name


class CtrlC:
    """Ends this process: at once as long as nothing is drawn, then where progress is told; the second time at once.

    Python's own handler raises between any two instructions, also where an exception is only printed and then lost.
    """

    def __init__(self) -> None:
        self.waits, self.came = False, False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self.came or not self.waits:
            end_process(INTERRUPTED)
        self.came = True

    def check(self, progress: Callable[[float], None]) -> Callable[[float], None]:
        """The same progress, which raises KeyboardInterrupt when Ctrl-C has come."""
        self.waits = True

        def told(images: float) -> None:
            if self.came:
                raise KeyboardInterrupt
            progress(images)

        return told


def end_process(code: int = 0) -> None:
    """End here and now, without taking the process apart: all files are closed, and only the output is in memory.

    DDP keeps gloo's threads alive when the group is left (torch 2.15). They see the other processes go while the
    libraries below them are being destroyed, and 1 of 20 runs that were stopped at their first steps ended in SIGABRT;
    of those that failed as tasks of Slurm, 3 of 11.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_at_exit(code: int) -> None:
    """Have this process end by `end_process(code)` once Python begins to exit; the last call counts.

    After an exception that nobody catches it ends with 1, as Python does, and after Ctrl-C with 130.
    """
    atexit.unregister(end_process)
    atexit.register(end_process, code)
    if not ends_at_exit():
        sys.excepthook = partial(_tell_and_end, sys.excepthook)


def ends_at_exit() -> bool:
    """Whether `end_at_exit` was called in this process."""
    return isinstance(sys.excepthook, partial) and sys.excepthook.func is _tell_and_end


def _tell_and_end(
    tell: Callable[..., object], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    tell(kind, error, trace)
    end_process(INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)
