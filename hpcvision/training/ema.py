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

    @property
    def next_beta(self) -> float:
        """beta of the next update, smaller during the warm-up."""
        if not self.config.warmup:
            return self.config.beta
        return min(self.config.beta, (1 + self.updates) / (10 + self.updates))

    def share(self, completed_steps: int) -> float:
        """1 - beta when an update is due after `completed_steps`, which is counted; else 0."""
        if completed_steps % self.config.every:
            return 0.0
        share = 1 - self.next_beta
        self.updates += 1
        return share

    @torch.no_grad()
    def update(self, model: nn.Module, share: torch.Tensor) -> None:
        """Take `share` (0-dim, on the model's device) of the model's weights in; 0 changes nothing.

        A tensor and no branch, so that a CUDA graph of one step serves all steps.
        """
        current = model.state_dict()
        names = [name for name, tensor in self.state.items() if tensor.is_floating_point()]
        averaged = [self.state[name] for name in names]
        change = torch._foreach_sub([current[name] for name in names], averaged)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(averaged, change)
        for name, tensor in self.state.items():
            if not tensor.is_floating_point():
                tensor.copy_(torch.where(share > 0, current[name], tensor))

    def load(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Continue from a stored average."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
        self.updates = updates
