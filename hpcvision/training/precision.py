"""The arithmetic of a run: precision, autocast, TF32, threads; chosen from the machine where the job leaves it open."""

import contextlib
import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch

from hpcvision.config import TrainConfig
from hpcvision.config.run import Precision
from hpcvision.distributed import Rank

# Names of settings in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Flags of /proc/cpuinfo of CPUs that multiply bf16 themselves: Intel and AMD with AVX-512 or AMX, ARM.
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def choose_precision(config: TrainConfig, rank: Rank) -> Precision:
    """The precision of a run that begins; the same on all ranks; call it on every rank.

    auto is bf16 only where every process computes it natively: emulated, it is slower than fp32.
    """
    if config.precision != "auto":
        return config.precision
    lacking = torch.tensor(int(not has_native_bf16(rank.device)), device=rank.device)
    return "fp32" if int(rank.max(lacking)) else "bf16"


def has_native_bf16(device: torch.device) -> bool:
    """True where the device multiplies bf16 itself: compute capability 8 on, or one of `NATIVE_BF16`."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(NATIVE_BF16 & cpu_flags())


@cache
def cpu_flags() -> frozenset[str]:
    """What the CPU can do, as the system lists it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, "").split())


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the model is evaluated."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def set_arithmetic(config: TrainConfig, rank: Rank) -> None:
    """Process-wide switches: TF32 in both places where torch has one, determinism, and threads of a CPU process."""
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    torch.backends.cudnn.allow_tf32 = config.allow_tf32
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    # Every step has the same shapes, so the search for the fastest convolution is done once.
    torch.backends.cudnn.benchmark = not config.deterministic
    deterministic = config.deterministic and rank.device.type == "cuda"
    # It would fill all new memory with NaN in every step, and nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # On an H200 cuDNN would come before flash attention. Its backward pass is not deterministic, and gave NaN for
    # sequences like those of our U-Nets in other people's hands (pytorch issue 196678, cudnn-frontend issue 160).
    torch.backends.cuda.enable_cudnn_sdp(False)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the switch imports the compiler: 0.8 s
        torch.use_deterministic_algorithms(deterministic)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(rank))


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees; by default every step gives its activations back to the system.

    Faulting them in again was a quarter of a step's CPU time: 501 ms before, 375 ms after (baby_mobilenet, 512 images,
    bf16, one thread of a Xeon with AMX), for 115 MB more at the peak. The numbers stay the same. Called when the data
    are loaded: what that needed for a moment, 200 MB, goes back first.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def threads_of(rank: Rank) -> int:
    """CPU threads for this process: what Slurm gave the task, else its share of the CPUs that may be used."""
    if rank.place.is_slurm_task and "SLURM_CPUS_PER_TASK" in os.environ:
        return int(os.environ["SLURM_CPUS_PER_TASK"])
    processes_here = max(1, rank.world_size // rank.place.node_count)
    return max(1, len(os.sched_getaffinity(0)) // processes_here)
