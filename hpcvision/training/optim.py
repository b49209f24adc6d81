"""The optimiser and the learning rate at every step."""

import math
from collections.abc import Callable
from typing import Any

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
    """SGD, AdamW, or Muon beside SGD; weight decay acts on matrices and filters only, not on biases and norms.

    rate: the learning rate, as a 0-dim float32 tensor on the model's device whose value the caller changes: a CUDA
    graph reads it at every replay. Only torch's fused optimisers take one without waiting for the device.
    """
    hidden = hidden_weights(model) if config.optimizer == "muon" else []
    taken = set(map(id, hidden))
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer in ("sgd", "muon"):
        nesterov = config.nesterov and config.momentum > 0
        sgd = torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=nesterov, fused=True)
        if config.momentum > 0:
            # Torch makes them at the first step, and leaves them unset when that is skipped, as fp16's may be.
            for parameter in parameters:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return MuonBesideSgd(config, hidden, sgd) if config.optimizer == "muon" else sgd
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=True, capturable=on_gpu)


def hidden_weights(model: nn.Module) -> list[torch.Tensor]:
    """What Muon is for: weights of linear layers and of convolutions that mix channels, but the first and the last.

    Of a model that makes its layers in the order in which it runs them, as those of `MUON_MODELS` do.
    """
    weights: list[torch.Tensor] = [
        layer.weight
        for layer in model.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    return weights[1:-1]


class MuonBesideSgd(torch.optim.Optimizer):
    """torch.optim.Muon (Jordan et al. 2024) for hidden weights, each as a matrix of its outputs, and SGD for the rest.

    Muon's matrix products are in bfloat16 on every device: another order of summation changes a step by up to 1 %.
    """

    def __init__(self, config: OptimConfig, hidden: list[torch.Tensor], sgd: torch.optim.SGD) -> None:
        # All of them are here as well, for the gradients' scaling, clipping and clearing.
        super().__init__(
            [{"params": hidden}, *({"params": group["params"]} for group in sgd.param_groups)],
            {"lr": sgd.param_groups[0]["lr"]},
        )
        self.rates_ratio = config.muon_learning_rate / config.learning_rate
        self.weight_decay = config.muon_weight_decay
        self.hidden, self.sgd = hidden, sgd
        # Only matrices, and only with a learning rate on the host, for which every step on a GPU would wait: torch's
        # Muon takes a step of length 1 from zero in memory of its own, and `step` scales it.
        self.directions = [nn.Parameter(torch.zeros_like(as_matrix(weight.detach(), like=weight))) for weight in hidden]
        # Torch's Muon multiplies the learning rate by this.
        self.scales = [math.sqrt(max(1, len(matrix) / matrix.shape[1])) for matrix in self.directions]
        self.muon = torch.optim.Muon(
            [{"params": [matrix], "lr": 1 / scale} for matrix, scale in zip(self.directions, self.scales, strict=True)],
            weight_decay=0.0,
            momentum=config.muon_momentum,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Both steps, at the learning rate of the first group."""
        assert closure is None, "no closure is used here"
        rate = self.param_groups[0]["lr"]
        for group in self.sgd.param_groups:
            group["lr"] = rate
        self.sgd.step()

        for matrix, weight in zip(self.directions, self.hidden, strict=True):
            assert weight.grad is not None, "DDP makes one for every weight"
            matrix.grad = as_matrix(weight.grad, like=weight)
            matrix.zero_()
        self.muon.step()
        muon_rate = torch.as_tensor(rate).double() * self.rates_ratio
        kept = (1 - muon_rate * self.weight_decay).float()
        for matrix, weight, scale in zip(self.directions, self.hidden, self.scales, strict=True):
            as_matrix(weight, like=weight).mul_(kept).addcmul_(matrix, (muon_rate * scale).float())

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the state of both under `state`."""
        states = {name: part.state_dict()["state"] for name, part in self.parts().items()}
        return super().state_dict() | {"state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of `state_dict`."""
        for name, part in self.parts().items():
            part.load_state_dict(part.state_dict() | {"state": state_dict["state"][name]})

    def parts(self) -> dict[str, torch.optim.Optimizer]:
        """The two optimisers."""
        return {"muon": self.muon, "sgd": self.sgd}


def as_matrix(values: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """A weight, or its gradient, as (outputs, all else), without a copy of the weight; its columns in any order."""
    if like.ndim == 4 and not like.is_contiguous():  # channels_last
        values = values.permute(0, 2, 3, 1)
    return values.flatten(1)
