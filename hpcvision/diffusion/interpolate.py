"""Paths between two noise tensors, for images that change gradually from one to the other."""

import torch
from torch import Tensor

# Below this sine of the angle between the two, a circle through them is decided by rounding errors.
SMALLEST_SINE = 1e-6


def linear(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """(F, *shape) points on the straight line from a to b, at fractions of the way; ends are exact.

    a, b: (*shape) float, noise of one image;  fractions: (F,) in [0, 1]. In the middle between independent noises the
    norm is only 0.71 of theirs, which no noise that a model was trained on has: prefer `slerp`.
    """
    fractions = fractions.double()
    return _mix(a, b, 1 - fractions, fractions)


def slerp(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """(F, *shape) points on the arc from a to b, at fractions of the angle; ends are exact (Shoemake 1985).

    a, b: (*shape) float, noise of one image;  fractions: (F,) in [0, 1]. Straight when a and b are nearly parallel.
    """
    fractions = fractions.double()
    cosine = torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)
    angle = cosine.clamp(-1, 1).acos()
    if angle.sin() < SMALLEST_SINE:
        return linear(a, b, fractions)
    return _mix(a, b, ((1 - fractions) * angle).sin() / angle.sin(), (fractions * angle).sin() / angle.sin())


def _mix(a: Tensor, b: Tensor, weights_a: Tensor, weights_b: Tensor) -> Tensor:
    """(F, *shape) sums in the type of a; float64 inside."""
    columns = (-1, *[1] * a.dim())
    mixed = weights_a.reshape(columns) * a.double() + weights_b.reshape(columns) * b.double()
    return mixed.to(a.dtype)
