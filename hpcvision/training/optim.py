"""The optimiser and the learning rate at every step."""

import math

import torch
from torch import nn

from hpcvision.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of the 0-based `step` out of `steps`.

    step_decay is eta(k) = eta_0 * alpha^k of paper A (section 1), k counting completed intervals of `decay_every`.
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    # 0 at the first step after the warm-up, 1 at the last step of the run.
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    final = config.final_learning_rate_fraction
    match config.schedule:
        case "constant":
            return peak
        case "step_decay":
            return float(peak * config.decay_factor ** (step // config.decay_every))
        case "cosine":
            return peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
        case "one_cycle":
            return peak * (final + (1 - final) * (1 - progress))


def build_optimizer(config: OptimConfig, model: nn.Module, rate: torch.Tensor | float) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay acts on matrices and filters only, not on biases, norms and other vectors.

    rate: the learning rate, as a 0-dim float32 tensor on the model's device whose value the caller changes: a CUDA
    graph reads it at every replay. Only torch's fused optimisers take one without waiting for the device.
    """
    parameters = list(model.parameters())
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=nesterov, fused=True)
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=True, capturable=on_gpu)
