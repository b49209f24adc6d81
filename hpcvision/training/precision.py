"""The arithmetic of a run: autocast, TF32, loss scaling, threads."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from hpcvision.config import TrainConfig
from hpcvision.distributed import Rank

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the model is evaluated."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[config.precision])


def set_arithmetic(config: TrainConfig, rank: Rank) -> None:
    """Process-wide switches: TF32 in both places where torch has one, determinism, and threads of a CPU process."""
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    torch.backends.cudnn.allow_tf32 = config.allow_tf32
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.use_deterministic_algorithms(config.deterministic and rank.device.type == "cuda")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(rank))


def threads_of(rank: Rank) -> int:
    """CPU threads for this process: what Slurm gave the task, else its share of the CPUs that may be used."""
    if rank.place.is_slurm_task and "SLURM_CPUS_PER_TASK" in os.environ:
        return int(os.environ["SLURM_CPUS_PER_TASK"])
    processes_here = max(1, rank.world_size // rank.place.node_count)
    return max(1, len(os.sched_getaffinity(0)) // processes_here)
