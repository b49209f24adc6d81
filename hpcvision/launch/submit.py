"""Submission through submitit: to this machine's local executor or to Slurm."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcvision.errors import TrainingStopped, UserError
from hpcvision.launch.job import TrainJob
from hpcvision.launch.local import in_one_line
from hpcvision.launch.profile import Profile
from hpcvision.rundir import RunDir

POLL_SECONDS = 0.5


def submit_here(rundir: RunDir, profile: Profile, *, processes: int) -> Any:
    """The submitit job that trains in `rundir` on this machine; pickles and logs go to submitted/ of the folder."""
    import submitit

    executor = submitit.AutoExecutor(folder=rundir.submissions, cluster="local")
    executor.update_parameters(
        name=rundir.folder.name,
        # submitit's own default would end a local job after two minutes.
        timeout_min=profile.time_limit_minutes,
        tasks_per_node=processes,
        # The local executor hides all GPUs that are not asked for.
        gpus_per_node=gpus_here(),
        stderr_to_stdout=True,
        **({"local_visible_gpus": visible_gpus()} if gpus_here() else {}),
    )
    with detached(rundir.submissions / "controller.log"):
        return executor.submit(TrainJob(str(rundir.folder), time_limit_seconds=60.0 * profile.time_limit_minutes))


@contextmanager
def detached(path: Path) -> Iterator[None]:
    """Children that are started meanwhile write to `path`, and live on after Ctrl-C and after the terminal is closed.

    submitit's local executor hands its background process our standard output; whoever reads that through a pipe or
    ssh would wait until the run ends. A signal that is ignored stays so in the children.
    """
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        with path.open("ab") as file:
            for number in kept:
                os.dup2(file.fileno(), number)
        yield
    finally:
        for number, descriptor in kept.items():
            os.dup2(descriptor, number)
            os.close(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)


# Where the drivers of NVIDIA, of its embedded boards, of Windows below Linux and of AMD show their cards.
DEVICE_FILES = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg", "kfd")


def gpus_here() -> int:
    """GPUs of this machine; torch, which takes a second to import, is only asked where a driver shows any."""
    if not any(any(Path("/dev").glob(name)) for name in DEVICE_FILES):
        return 0
    import torch

    return torch.cuda.device_count()


def visible_gpus() -> tuple[int, ...]:
    """Numbers of the GPUs that this process may use; submitit would hand out 0, 1, ... of the whole machine."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return tuple(range(gpus_here()))
    if not all(part.strip().isdigit() for part in given.split(",")):
        raise UserError(f"CUDA_VISIBLE_DEVICES={given} does not name GPUs by number, which submitit needs; use numbers")
    return tuple(map(int, given.split(",")))


def follow(job: Any, rundir: RunDir) -> None:
    """Print the log of rank 0 until the job ends; raises UserError with the first failing rank's words."""
    path = Path(job.paths.stdout)
    position = 0

    def show_news() -> None:
        nonlocal position
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                news = file.read()
            position += len(news)
            sys.stdout.write(news.decode(errors="replace"))
            sys.stdout.flush()

    while not job.done():
        show_news()
        time.sleep(POLL_SECONDS)
    show_news()
    error = job.exception()  # asked for once: submitit waits 15 s for each result that is missing
    if error is not None:
        raise failure_of_job(str(error), rundir)
    for task in job.results():
        if not task["finished"]:
            print(f"stopped at step {task['step']:,} ({task['reason']}); submit again to go on")
            break


def failure_of_job(said: str, rundir: RunDir) -> UserError:
    """What the first failing rank wrote, else what submitit heard of it; said: the text of submitit's error."""
    ours = [line for line in said.splitlines() if "hpcvision.errors." in line]
    if rundir.failure.exists():
        text = rundir.failure.read_text().rstrip()
    else:
        text = ours[0].partition("hpcvision.errors.")[2].partition(": ")[2] if ours else said
    return in_one_line(text, rundir, UserError if "hpcvision.errors.UserError" in said else TrainingStopped)
