"""The training loop of every task. One step = one optimisation step of the global batch."""

from contextlib import nullcontext

import torch

from hpcvision.config import RunConfig
from hpcvision.distributed import Rank
from hpcvision.errors import TrainingStopped
from hpcvision.models.counting import check_cap
from hpcvision.provenance import trained_by_other_code
from hpcvision.rundir import RunDir, check_same, read_journal
from hpcvision.stopping import StopRequest
from hpcvision.training import checkpoint
from hpcvision.training import state as states
from hpcvision.training.bookkeeping import Bookkeeping
from hpcvision.training.generation import DrawingStopped
from hpcvision.training.precision import choose_precision, set_arithmetic
from hpcvision.training.state import Outcome
from hpcvision.training.step import Step
from hpcvision.training.tasks import TASKS, Task


def train(config: RunConfig, rundir: RunDir, rank: Rank, stop: StopRequest, *, read_test: bool = True) -> Outcome:
    """Train until the last step or until asked to stop; goes on from the checkpoint in `rundir` when there is one.

    read_test=False ends with the scores of the validation split instead and leaves the test split alone.
    """
    # One stream of its own for everything: a CUDA graph can only be recorded where DDP and all warm-up steps ran.
    with torch.cuda.stream(torch.cuda.Stream()) if rank.device.type == "cuda" else nullcontext():
        return train_here(config, rundir, rank, stop, read_test=read_test)


def train_here(config: RunConfig, rundir: RunDir, rank: Rank, stop: StopRequest, *, read_test: bool) -> Outcome:
    """As `train`, on the current stream."""
    parameters = check_cap(config)
    set_arithmetic(config.train, rank)
    content, said = checkpoint.load(rundir)
    if content is not None:
        check_same(config, RunConfig.model_validate(content["config"]), rundir.folder)
    check_all_resume_together(content["step"] if content else 0, rank)
    precision = content["precision"] if content else choose_precision(config.train, rank)
    task: Task = TASKS[config.task.kind](config, rank, precision)
    state = states.fresh(config, rank, len(task.metric_names), precision)
    if content is not None:
        states.restore(state, content, rank)
        said = said or other_world(content["world_size"], rank)
        if other := trained_by_other_code(read_journal(rundir.log)):
            said = "; ".join(filter(None, [said, f"the steps so far were trained by {other}"]))
    books = Bookkeeping(config, rundir, rank, task, state, parameters)
    try:
        with books:
            if said:
                books.progress.say(said)
            books.evaluate_if_missing(stop)
            step = Step(config, state, task, rank, books.progress.say)
            code = stop.pause(state.step)
            while state.step < config.train.steps and not code:
                step()
                code = books.after_step(stop)
            if code:
                return books.interrupted(StopRequest.reason(code))
            task.stop_with(stop)
            try:
                return books.finish("test" if read_test else "validation")
            except DrawingStopped as stopped:
                return books.interrupted(StopRequest.reason(stopped.code))
    except OSError as error:  # a full disk, an exceeded quota, a shared disk that went away
        raise TrainingStopped(
            f"cannot write: {error.strerror or error}; {books.what_is_kept()}, and whole; make room, or mend what is "
            "wrong, and give the same command again"
        ) from error


def check_all_resume_together(step: int, rank: Rank) -> None:
    """Raise TrainingStopped when the ranks have read different checkpoints, as a stale cache of a shared disk gives."""
    steps = rank.gather(torch.tensor(step, device=rank.device)).tolist()
    if len(set(steps)) > 1:
        raise TrainingStopped(f"the ranks read checkpoints of steps {steps}; try again in a minute")


def other_world(before: int, rank: Rank) -> str:
    """A sentence when the run goes on with another number of processes than it had, else nothing."""
    if before == rank.world_size:
        return ""
    return (
        f"going on with {rank.world_size} process(es) after {before}: equal up to rounding, and to what dropout and "
        "BatchNorm draw from each process's own share, not bit for bit"
    )
