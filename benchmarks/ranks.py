"""Real processes that take the optimisation steps of a job and time them; no table of its own.

`timed` starts this file once per process, as hpcvision/launch/local.py starts its workers, and gives what rank 0 saw.
"""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpcvision import distributed
from hpcvision.config import RunConfig
from hpcvision.distributed import Rank
from hpcvision.launch.local import HUGE_PAGES, wait
from hpcvision.training import state as states
from hpcvision.training.precision import choose_precision, set_arithmetic
from hpcvision.training.step import Step
from hpcvision.training.tasks import TASKS


def timed(
    config: RunConfig,
    *,
    processes: int = 1,
    threads: int | None = None,
    steps: int,
    blocks: int,
    warm_up: int,
    exchange: bool = False,
) -> dict[str, Any]:
    """What `measure` returns on rank 0 of fresh processes.

    threads: of each process; None leaves it to the job.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"steps": steps, "blocks": blocks, "warm_up": warm_up, "exchange": exchange}
        (Path(folder) / "wanted.json").write_text(json.dumps(wanted | {"config": config.model_dump(mode="json")}))
        # The launcher asks for huge pages where it starts several processes; here all cases have them, to be alike.
        shared = HUGE_PAGES | os.environ
        shared |= {"HPCVISION_WORLD_SIZE": str(processes), "HPCVISION_JOB_ID": uuid.uuid4().hex[:8]}
        shared |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}  # nothing compiled earlier is found
        shared.pop("OMP_NUM_THREADS", None)
        shared |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        command = [sys.executable, str(Path(__file__).resolve()), folder]
        children = [
            subprocess.Popen(command, env=shared | {"HPCVISION_RANK": str(rank)}, stdout=sys.stderr)
            for rank in range(processes)
        ]
        try:
            rank, code = wait(children)
        finally:
            for child in children:
                child.kill()  # does nothing to one that has ended
        if code:
            sys.exit(f"rank {rank} of {processes} ended with code {code}")
        return dict(json.loads((Path(folder) / "seen.json").read_text()))


def measure(config: RunConfig, rank: Rank, *, steps: int, blocks: int, warm_up: int, exchange: bool) -> dict[str, Any]:
    """Seconds of the warm-up, seconds per step (median of the blocks), and the largest memory; call it on every rank.

    exchange=True also times, alternately with the normal blocks, the same steps without the all-reduce of the
    gradients, and one all-reduce of as many numbers alone.
    """
    step = built(config, rank)
    settle(rank)
    started = time.perf_counter()
    for _ in range(warm_up):
        step()
    settle(rank)
    seen: dict[str, Any] = {
        "warm_up_seconds": time.perf_counter() - started,
        "precision": step.state.precision,
        "threads": torch.get_num_threads(),
        "is_graph": step.graph is not None,
    }
    seconds, alone, bare = [], [], []
    for _ in range(blocks):
        seconds.append(block(step, rank, steps))
        if exchange:
            with step.state.ddp.no_sync():
                alone.append(block(step, rank, steps))
            gradient = torch.zeros(sum(p.numel() for p in step.state.model.parameters()), device=rank.device)
            bare.append(block(lambda gradient=gradient: rank.sum(gradient), rank, steps))
    seen |= {"seconds_per_step": statistics.median(seconds), "megabytes": peak_megabytes(rank)}
    if exchange:
        seen |= {
            "seconds_without_exchange": statistics.median(alone),
            "seconds_of_exchange": statistics.median(a - b for a, b in zip(seconds, alone, strict=True)),
            "seconds_of_bare_all_reduce": statistics.median(bare),
        }
    return seen


def built(config: RunConfig, rank: Rank) -> Step:
    """The step of a run that begins, as training/loop.py makes it; call it on every rank."""
    set_arithmetic(config.train, rank)
    precision = choose_precision(config.train, rank)
    task = TASKS[config.task.kind](config, rank, precision)
    return Step(config, states.fresh(config, rank, len(task.metric_names), precision), task, rank, print)


def block(step: Callable[[], object], rank: Rank, count: int) -> float:
    """Seconds per call of `step` over `count` calls that all ranks begin together, of the slowest rank."""
    dist.barrier()
    settle(rank)
    started = time.perf_counter()
    for _ in range(count):
        step()
    settle(rank)
    seconds = (time.perf_counter() - started) / count
    return float(rank.max(torch.tensor(seconds, dtype=torch.float64, device=rank.device)))


def settle(rank: Rank) -> None:
    """Wait for the device, which on CUDA runs behind the host."""
    if rank.device.type == "cuda":
        torch.cuda.synchronize()


def peak_megabytes(rank: Rank) -> float:
    """Largest memory so far, in 10^6 bytes: what tensors took on CUDA, else the resident memory of this process."""
    return torch.cuda.max_memory_allocated() / 1e6 if rank.device.type == "cuda" else peak_resident_megabytes()


def peak_resident_megabytes() -> float:
    """Largest resident memory of this process so far, in 10^6 bytes.

    Not ru_maxrss: Linux lets a child process start with that of the process that started it.
    """
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6


def main() -> None:
    folder = Path(sys.argv[1])
    wanted = json.loads((folder / "wanted.json").read_text())
    config = RunConfig.model_validate(wanted.pop("config"))
    rank = distributed.start(distributed.Place.from_environment(), folder)
    own_stream = torch.cuda.stream(torch.cuda.Stream()) if rank.device.type == "cuda" else contextlib.nullcontext()
    with own_stream:  # as in training/loop.py
        seen = measure(config, rank, **wanted)
    if rank.is_main:
        (folder / "seen.json").write_text(json.dumps(seen))
    distributed.stop()


if __name__ == "__main__":
    main()
