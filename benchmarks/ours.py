"""Our training step in processes of its own, as many as the job starts by itself; they wait between their turns."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from hpcvision import distributed
from hpcvision.config import RunConfig
from hpcvision.launch.local import HUGE_PAGES, choose_processes
from hpcvision.rundir import write_json
from hpcvision.training import state as states
from hpcvision.training.precision import choose_precision, set_arithmetic
from hpcvision.training.step import Step
from hpcvision.training.tasks import TASKS


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over all numbers of a state dict."""
    whole = hashlib.sha256()
    for name in sorted(weights):
        whole.update(weights[name].contiguous().numpy().tobytes())
    return whole.hexdigest()


class Ranks:
    """The processes, as the benchmark sees them."""

    def __init__(self, processes: list["subprocess.Popen[str]"]) -> None:
        self.processes = processes
        self.first_weights = self.answer()

    def answer(self) -> str:
        """The next line of rank 0."""
        assert self.processes[0].stdout is not None, "opened as a pipe"
        return self.processes[0].stdout.readline().strip()

    def turn(self) -> float:
        """Seconds of the timed steps, of the slowest rank."""
        for process in self.processes:
            assert process.stdin is not None, "opened as a pipe"
            process.stdin.write("turn\n")
            process.stdin.flush()
        return float(self.answer())


@contextmanager
def as_the_job_starts_them(config: RunConfig, steps: int) -> Iterator[Ranks]:
    """The processes that `hpcvision train` would start here, with the threads that they choose."""
    count = choose_processes(config)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", config.model_dump(mode="json"))
        shared = HUGE_PAGES | os.environ
        shared |= {"HPCVISION_WORLD_SIZE": str(count), "HPCVISION_JOB_ID": uuid.uuid4().hex[:8]}
        command = [sys.executable, str(Path(__file__).resolve()), folder, str(steps)]
        processes = [
            subprocess.Popen(
                command,
                env=shared | {"HPCVISION_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        try:
            yield Ranks(processes)
        finally:
            for process in processes:
                process.communicate()  # the end of its input ends it


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    config = RunConfig.model_validate_json((folder / "config.json").read_text())
    rank = distributed.start(distributed.Place.from_environment(), folder)
    set_arithmetic(config.train, rank)
    precision = choose_precision(config.train, rank)
    task = TASKS[config.task.kind](config, rank, precision)
    state = states.fresh(config, rank, len(task.metric_names), precision)
    step = Step(config, state, task, rank)
    print(digest(state.model.state_dict()), flush=True)
    for _ in sys.stdin:
        step()
        dist.barrier()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
        print(float(rank.max(seconds)), flush=True)
    distributed.stop()


if __name__ == "__main__":
    main()
