"""One process at a time trains in a run's folder; the others are refused, or wait for it."""

import contextlib
import fcntl
import itertools
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcvision.errors import FolderInUse
from hpcvision.place import Place
from hpcvision.rundir import Heartbeat, RunDir, cannot_write
from hpcvision.stopping import StopRequest

# Set in a job that cannot go back into the queue, such as a link of a chain.
ONE_TRY = "HPCVISION_ONE_TRY"
LOOK_SECONDS = 5.0  # between two looks at whether the folder is free
SILENT_SECONDS = 600.0  # without a heartbeat: a lock that a shared disk has not released, nobody trains


@contextmanager
def in_turn(rundir: RunDir, place: Place, stop: StopRequest) -> Iterator[None]:
    """As `only_one`; a job that cannot go back into the queue waits while the other process gives a sign of life.

    Otherwise a node that is cut off and still trains would use up all links of a chain within seconds.
    """
    from hpcvision import distributed

    began = time.time()
    with contextlib.ExitStack() as stack:
        for look in itertools.count():
            try:
                stack.enter_context(only_one(rundir))
                break
            except FolderInUse as error:
                heartbeat = Heartbeat.read(rundir)
                silence = time.time() - max(began, heartbeat.time if heartbeat else 0.0)
                if ONE_TRY not in os.environ or stop.code or silence > SILENT_SECONDS:
                    distributed.announcement_of(place, rundir.folder).unlink(missing_ok=True)
                    raise
                if look == 0:
                    print(f"hpcvision: {error}; this job waits for it", file=sys.stderr, flush=True)
                if look % 6 == 0:
                    distributed.announce_waiting(place, rundir.folder)
                time.sleep(LOOK_SECONDS)
        yield


@contextmanager
def only_one(rundir: RunDir, *, shared: bool = False, name: str = "lock") -> Iterator[None]:
    """Holds the run folder; raises UserError when another process trains in it. Where locks fail, there is none.

    shared: others that say so may hold it at the same time.
    """
    try:
        file = (rundir.folder / name).open("a+")  # readable, too: NFS refuses a shared lock otherwise
    except OSError as error:
        raise cannot_write(rundir.folder, error) from None
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"another process is training in {rundir.folder}; wait for it, or end it by hpcvision cancel"
            ) from None
        except OSError:
            pass
        if not shared:
            with contextlib.suppress(OSError):  # a full disk: then nobody can say who holds it
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"{os.getpid()} {' '.join(this_machine())}\n".encode())
        yield


def holder(rundir: RunDir) -> int | None:
    """Id of the process of this machine that holds the folder alone; None when it is free, or held elsewhere."""
    number, holds = last_holder(rundir)
    return number if holds else None


def last_holder(rundir: RunDir) -> tuple[int, bool | None]:
    """(id, whether it holds the folder) of the process that held it last; (0, None) where nobody can know from here."""
    lock = rundir.folder / "lock"
    try:
        number, *machine = lock.read_text().split()
        # Another user's process may be hidden.
        if machine != this_machine() or lock.stat().st_uid != os.getuid():
            return 0, None
        process = Path(f"/proc/{int(number)}")
        if not process.exists():
            return 0, False
        files = list((process / "fd").iterdir())
    except (OSError, ValueError):
        return 0, None
    for path in files:
        with contextlib.suppress(OSError):  # it was closed meanwhile
            if path.samefile(lock):
                return int(number), True
    return 0, None  # of another process by now, or of one that has let others begin to train


def this_machine() -> list[str]:
    """Where a process's id means the same: host name and namespace, as containers may share the one or the other."""
    try:
        return [socket.gethostname(), Path("/proc/self/ns/pid").readlink().name]
    except OSError:
        return [socket.gethostname()]


def is_at_work(rundir: RunDir) -> bool | None:
    """Whether a process of this machine trains in the folder, or submitit has begun to; None where nobody can know."""
    return starter(rundir) is not None or last_holder(rundir)[1]


def starter(rundir: RunDir) -> int | None:
    """Id of the process of submitit's local executor that has started ranks which do not hold the folder yet."""
    lock, name = rundir.folder / "lock", os.fsencode(Path(rundir.folder.name, rundir.submissions.name))
    for path in rundir.submissions.glob("*_submitted.pkl"):
        with contextlib.suppress(OSError, ValueError):  # the process has ended, or is another machine's
            number = int(path.name.partition("_")[0])
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
            is_it = b"submitit.local._local" in words and words[-2].endswith(name)
            if is_it and not (lock.exists() and lock.stat().st_mtime > path.stat().st_mtime):
                return number
    return None
