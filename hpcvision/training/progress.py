"""What a person sees of a long run: a bar on a terminal, one plain line every 30 seconds in a log."""

import math
import socket
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from hpcvision.config import RunConfig
from hpcvision.distributed import Rank
from hpcvision.rundir import Heartbeat, RunDir

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS = 30.0
BEAT_SECONDS = 10.0


class StepProgress:
    """Shows the steps of one run, or whatever `unit` says; silent on all ranks but the main one."""

    def __init__(
        self,
        *,
        first_step: int,
        steps: int,
        name: str,
        is_main: bool,
        unit: str = "step",
        beat: Callable[[int, str], None] | None = None,
    ) -> None:
        """beat: told every few seconds, on the main rank, at which step the run is."""
        self.is_main = is_main
        self.beat = beat if is_main else None
        self.last_beat = -math.inf
        self.unit = unit
        self.steps = steps
        self.first_step = first_step
        self.name = name
        self.started = time.monotonic()
        self.last_line = self.started
        self.bar: Progress | None = None
        if is_main and sys.stderr.isatty():
            self.bar = bar_on_terminal()
            self.row = self.bar.add_task(name, total=steps, completed=first_step, numbers="")

    def __enter__(self) -> "StepProgress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, step: int, numbers: str) -> None:
        """Show that `step` steps are done; `numbers` is a short text such as the loss."""
        if self.beat and time.monotonic() - self.last_beat >= BEAT_SECONDS:
            self.last_beat = time.monotonic()
            self.beat(step, numbers)
        if self.bar:
            self.bar.update(self.row, completed=step, numbers=numbers)
        elif self.is_main and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            seconds = (self.last_line - self.started) / max(1, step - self.first_step) * (self.steps - step)
            self.say(f"{self.unit} {step:,}/{self.steps:,}  {numbers}  {clock(seconds)} left")

    def say(self, line: str) -> None:
        """A line that stays, above the bar or in the log."""
        if not self.is_main:
            return
        if self.bar:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def bar_on_terminal() -> "Progress":
    """An empty bar; rich takes 0.02 s to import, which the first step of a batch job does not wait for."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[numbers]}"), console=Console(file=sys.stderr))


def progress_of_run(config: RunConfig, rundir: RunDir, rank: Rank, *, first_step: int) -> StepProgress:
    """Of a run's steps, with a heartbeat in its folder."""

    def beat(step: int, numbers: str) -> None:
        Heartbeat(time.time(), step, numbers, socket.gethostname(), rank.place.job_id).write(rundir)

    return StepProgress(
        first_step=first_step, steps=config.train.steps, name=config.run_name, is_main=rank.is_main, beat=beat
    )


class Drawn:
    """Called with the images that this rank has drawn since the last call; shows how many of how many, and how long."""

    def __init__(self, progress: StepProgress, total: float, world_size: int, *, step: int | None = None) -> None:
        """step: of the run whose progress is shown; without it the progress counts images itself."""
        self.progress, self.step, self.total, self.world_size = progress, step, total, world_size
        self.done, self.started = 0.0, time.monotonic()

    def __call__(self, images: float) -> None:
        self.done = min(self.total, self.done + images * self.world_size)  # the other ranks have done about as many
        rate = self.done / (time.monotonic() - self.started)
        if self.step is None:
            self.progress.advance(round(self.done), f"{rate:.3g} images/s")
        else:
            left = clock((self.total - self.done) / rate)
            text = f"drawing: {self.done:,.0f} of {self.total:,.0f} images, {rate:.3g} images/s, {left} to go;"
            self.progress.advance(self.step, text)


def clock(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    hours, rest = divmod(int(seconds), 3600)
    return (f"{hours}:" if hours else "") + f"{rest // 60:02}:{rest % 60:02}"
