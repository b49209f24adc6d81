"""BatchNorm over the global batch: its result does not depend on how many processes share the batch."""

import torch
import torch.distributed as dist
from torch import nn

# Why not torch.nn.SyncBatchNorm: it refuses CPU tensors.


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_context: object, tensor: torch.Tensor) -> torch.Tensor:
        """Call it on every rank, in the same order."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: object, gradient: torch.Tensor) -> torch.Tensor:
        """As forward."""
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are those of the global batch; the same parameters and buffers.

    Mean first, then the mean squared distance from it, in float32: E[x^2] - E[x]^2 would lose digits.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same shape and dtype."""
        if not self.training:
            return super().forward(images)
        assert self.running_mean is not None, "the models track running statistics"
        assert self.running_var is not None, "the models track running statistics"
        assert self.num_batches_tracked is not None, "the models track running statistics"
        with torch.autocast(images.device.type, enabled=False):
            values = images.float()
            count = values.numel() // values.shape[1] * dist.get_world_size()
            mean: torch.Tensor = SumOverRanks.apply(values.sum((0, 2, 3))) / count
            centred = values - mean[:, None, None]
            variance: torch.Tensor = SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
            with torch.no_grad():
                assert self.momentum is not None, "the models use a fixed momentum"
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
                self.num_batches_tracked.add_(1)
            scale = self.weight * (variance + self.eps).rsqrt()
            return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


def synchronize(model: nn.Module) -> None:
    """Turn every BatchNorm2d inside `model` into one over the global batch, in place."""
    for part in model.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SynchronizedBatchNorm2d  # so that tensors, device and mode stay
