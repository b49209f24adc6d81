"""The logs of runs, as they are and as they grow, and waiting for runs that a cluster has."""

import sys
import time
from pathlib import Path

from hpcvision.errors import TrainingStopped, UserError
from hpcvision.launch import queue
from hpcvision.launch.record import Record
from hpcvision.launch.status import is_finished, status_of, statuses
from hpcvision.rundir import RunDir

POLL_SECONDS = 2.0
ASK_SECONDS = 10.0  # between questions to Slurm, which all users of a cluster share


class Tail:
    """Prints what is new in a file that may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0

    def last(self, lines: int) -> None:
        """Print the last lines that are there now."""
        if self.path.exists():
            content = self.path.read_bytes()
            self.position = len(content)
            sys.stdout.write("".join(content.decode(errors="replace").splitlines(keepends=True)[-lines:]))
            sys.stdout.flush()

    def news(self) -> None:
        """Print what was added since the last time."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.position)
                added = file.read()
            self.position += len(added)
            sys.stdout.write(added.decode(errors="replace"))
            sys.stdout.flush()


def log_of(rundir: RunDir) -> Path:
    """The log of rank 0: of the newest Slurm job that has written, else of submitit's local executor.

    Of a sweep that of its newest job, of an array that of the first share.
    """
    record = Record.of(rundir)
    if record and rundir.is_sweep:
        paths = [rundir.submissions / f"{job}{share}.log" for job in record.jobs for share in ("", "_0")]
        return ([path for path in paths if path.exists()] or [Path(record.log)])[-1]
    if record and record.log:
        # The earlier links of a chain wrote beside the last.
        last = Path(record.log)
        logs = [last.with_name(last.name.replace(f"{record.jobs[-1]}_", f"{job}_", 1)) for job in record.jobs]
        written = [path for path in logs if path.exists()]
        return written[-1] if written else logs[0]
    if record:
        raise UserError(
            f"{rundir.folder.name}: the log of its job {record.jobs[-1]} is where sbatch was told to write it"
        )
    submitted = sorted(rundir.submissions.glob("*_submitted.pkl"), key=lambda path: path.stat().st_mtime)
    if not submitted:
        how = "sweep --cluster" if rundir.is_sweep else "submit"
        raise UserError(f"{rundir.folder.name} was not submitted by hpcvision {how}: its log was the terminal")
    return submitted[-1].with_name(submitted[-1].name.replace("_submitted.pkl", "_0_log.out"))


def show_log(rundir: RunDir, *, lines: int, follow: bool) -> None:
    """Print the end of a run's log, and with follow=True what comes, until the run has ended."""
    tail = Tail(log_of(rundir))
    tail.last(lines)
    if not follow:
        if not tail.path.exists():
            raise UserError(f"{tail.path} is not there yet; the job has not started (see hpcvision status)")
        return
    wait_for([rundir], tail)


def wait_for(rundirs: list[RunDir], tail: Tail | None = None) -> None:
    """Return when none of the runs is in the queue any more; shows the log of a single one meanwhile.

    Raises TrainingStopped when one of them has not finished.
    """
    if not rundirs:
        return
    if tail is None and len(rundirs) == 1:
        tail = Tail(log_of(rundirs[0]))
    asked, said = 0.0, ""
    try:
        while True:
            if tail:
                tail.news()
                if tail.path != (newest := log_of(rundirs[0])):  # the next link of a chain
                    tail = Tail(newest)
            if time.monotonic() - asked >= ASK_SECONDS or all(is_finished(rundir) for rundir in rundirs):
                asked = time.monotonic()
                living = not_over(rundirs)
                now = ", ".join(f"{name} {state}" for name, state in list((living or {}).items())[:3])
                if living and now != said:
                    print(f"{len(living)} job(s): {now}", flush=True)
                    said = now
                if living is not None and not living:
                    break
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print("\nthe jobs go on; see hpcvision status")
        sys.exit(130)
    if tail:
        tail.news()
    bad = [rundir for rundir in rundirs if not is_finished(rundir)]
    if bad:
        (status,) = statuses(bad[0].folder.parent, bad[0].folder.name)
        others = f"; {len(bad)} of {len(rundirs)} runs have not finished" if len(bad) > 1 else ""
        raise TrainingStopped(f"{bad[0].folder.name}: {status.state}, {status.words}{others}")


def not_over(rundirs: list[RunDir]) -> dict[str, str] | None:
    """States of the jobs of these runs that wait or run, or of the runs of this machine; None when Slurm is mute."""
    ids = [job for rundir in rundirs if (record := Record.of(rundir)) for job in record.jobs]
    if not ids:
        here = [status_of(rundir, None, {}) for rundir in rundirs]
        return {status.rundir.folder.name: status.state for status in here if status.state == "running"}
    try:
        return {name: job.state for name, job in queue.in_queue(ids).items() if job.lives}
    except UserError:  # its controller is away for a moment; the jobs are not
        return None
