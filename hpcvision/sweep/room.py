"""Whether as many trials as asked for fit into the memory of a GPU."""

import torch

from hpcvision import data
from hpcvision.config import RunConfig
from hpcvision.errors import UserError
from hpcvision.launch.space import megabytes
from hpcvision.models.counting import activations_of, stored_numbers_of

# CUDA's own share of a process, with cuBLAS and cuDNN; an assumption until it is measured on a GPU.
CONTEXT_BYTES = 600_000_000


def gpu_bytes_needed(config: RunConfig) -> int:
    """Memory of one trial, estimated from above: CUDA, all images, weights with what belongs to them, one step."""
    shape = {"image_size": config.model.image_size, "num_classes": config.model.num_classes}
    splits = [data.load(config.data, split, **shape).images for split in ("train", "validation")]
    images = sum(split.numel() for split in splits)
    copies = 5  # raw, averaged, evaluated, gradients, DDP's buckets; the optimiser's moments come to them
    moments = 2 if config.optim.optimizer == "adamw" else 1
    weights = 4 * (copies + moments) * stored_numbers_of(config.model)
    step = 2 * 4 * config.train.global_batch_size * activations_of(config.model)  # kept for the way back, and gradients
    return CONTEXT_BYTES + images + weights + step


def check_gpu_room(config: RunConfig, per_gpu: int) -> None:
    """Raise UserError when `per_gpu` trials of this kind need more memory than a GPU of this machine has."""
    needed = gpu_bytes_needed(config)
    memory = min(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
    if per_gpu * needed > memory:
        raise UserError(
            f"--per-gpu={per_gpu} trials need about {megabytes(per_gpu * needed)} MB, the GPU has "
            f"{megabytes(memory)} MB; try --per-gpu={max(1, memory // needed)}"
        )
