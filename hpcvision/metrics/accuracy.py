"""Accuracy of a classifier with its uncertainty, per class and as a confusion matrix."""

import math

import torch


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927), as two fractions."""
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (centre - spread) / (1 + z * z / total)), min(1.0, (centre + spread) / (1 + z * z / total))


def batch_deviation(correct: torch.Tensor, batch_size: int) -> float:
    """Standard deviation of the accuracy over consecutive batches, the `s` of the papers' `acc: m +- s`.

    correct: (N,) bool in data order; the last batch may be shorter; population form (divided by the count).
    """
    return float(torch.stack([batch.double().mean() for batch in correct.split(batch_size)]).std(correction=0))


def confusion_matrix(labels: torch.Tensor, predictions: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(num_classes, num_classes) int64; row = true class, column = predicted class."""
    cells = torch.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return cells.reshape(num_classes, num_classes)
