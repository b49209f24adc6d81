"""The kernel distance between two small sets of features, class by class where a Fréchet distance has no sense."""

import torch
from torch import Tensor


def kernel_distance_of_sets(features: Tensor, reference: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x . y / D + 1)^3 (Binkowski et al. 2018, eq. 3).

    features: (N, D), reference: (M, D), both at least 2 rows. 0 in the mean for two sets of one distribution, so a
    single value may be below 0.
    """
    x, y = features.double(), reference.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1).pow(3)

    def among(a: Tensor) -> Tensor:
        table = kernel(a, a)
        return (table.sum() - table.trace()) / (len(a) * (len(a) - 1))

    return float(among(x) + among(y) - 2 * kernel(x, y).mean())


def kernel_distance_by_class(
    features: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, classes: int
) -> Tensor:
    """(classes,) float64 `kernel_distance_of_sets` of every class; not a number where a set has fewer than 2 images."""
    distances = torch.full((classes,), torch.nan, dtype=torch.float64)
    for label in range(classes):
        own, other = features[labels == label], reference[reference_labels == label]
        if len(own) > 1 and len(other) > 1:
            distances[label] = kernel_distance_of_sets(own, other)
    return distances
