"""The Fréchet distance between two sets of features: how far two Gaussians with their moments are apart."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hpcvision.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D), both float64, of `count` feature vectors."""

    mean: Tensor
    covariance: Tensor
    count: int

    @cached_property
    def root(self) -> Tensor:
        """(D, rank) float64; root @ root.T is the covariance. Made once for a reference that many sets are held to."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > _rounding(values)
        root: Tensor = vectors[:, kept] * values[kept].sqrt()
        return root


def moments(features: Tensor) -> Moments:
    """The moments of (N, D) features, N at least 2; raises UserError when one is not finite.

    The covariance is divided by N - 1, as torch-fidelity and pytorch-fid do.
    """
    if len(features) < 2:
        raise UserError(f"{len(features)} image(s) have no covariance; give at least 2")
    features = features.double()
    if not features.isfinite().all():
        raise UserError("a feature is not finite; look at the images and at the precision of the extractor")
    mean = features.mean(0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1), len(features))


def frechet_distance(moments: Moments, reference: Moments) -> float:
    """|difference of the means|^2 + tr A + tr B - 2 tr (A B)^(1/2) (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).

    The last trace is the sum of the square roots of the eigenvalues of R^T A R with R R^T = B, which is symmetric: no
    complex square root, no epsilon on the diagonal, and as small as the rank of the reference.
    """
    values = torch.linalg.eigvalsh(reference.root.T @ moments.covariance @ reference.root)
    shared = values[values > _rounding(values)].sqrt().sum()
    distance = (moments.mean - reference.mean).square().sum()
    distance += moments.covariance.trace() + reference.covariance.trace() - 2 * shared
    return max(0.0, float(distance))


def _rounding(values: Tensor) -> float:
    """Below it an eigenvalue of these is rounding; its square root would not be small: 1e-8 for 1e-16."""
    return float(values.abs().max()) * len(values) * torch.finfo(values.dtype).eps if len(values) else 0.0
