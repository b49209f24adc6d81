"""The exponential moving average of weights and of normalisation statistics."""

import torch
from torch import nn

from hpcvision.config import EmaConfig


class WeightAverage:
    """average <- beta * average + (1 - beta) * weights, every `every` steps; starts as a copy of the model.

    Floating-point buffers (BatchNorm statistics) are averaged with the weights: raw statistics do not fit averaged
    weights. Weights are the same on every rank by computation; the buffers are those of the rank.
    """

    def __init__(self, config: EmaConfig, model: nn.Module) -> None:
        self.config = config
        self.updates = 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._averaged = [tensor for tensor in self.state.values() if tensor.is_floating_point()]

    @property
    def next_beta(self) -> float:
        """beta of the next update, smaller during the warm-up."""
        if not self.config.warmup:
            return self.config.beta
        return min(self.config.beta, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module, completed_steps: int) -> None:
        """Take the model's weights in, when `completed_steps` is a multiple of `every`."""
        if completed_steps % self.config.every:
            return
        current = model.state_dict()
        torch._foreach_lerp_(
            self._averaged,
            [current[name] for name, tensor in self.state.items() if tensor.is_floating_point()],
            1 - self.next_beta,
        )
        for name, tensor in self.state.items():
            if not tensor.is_floating_point():
                tensor.copy_(current[name])
        self.updates += 1

    def load(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Continue from a stored average."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
        self.updates = updates
