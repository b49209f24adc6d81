"""The Fréchet distance agrees with closed forms and with scipy's matrix square root, of full rank and below."""

import pytest
import scipy.linalg
import torch

from hpcvision.errors import UserError
from hpcvision.metrics.frechet import Moments, frechet_distance, moments


def features(count: int, size: int, *, seed: int, decay: float = 1.0) -> torch.Tensor:
    """Correlated, with standard deviations that fall as a power of their number, and a mean of its own."""
    stream = torch.Generator().manual_seed(seed)
    deviations = torch.arange(1, size + 1).double() ** -decay
    mixed = torch.linalg.qr(torch.randn(size, size, generator=stream, dtype=torch.float64)).Q
    drawn = torch.randn(count, size, generator=stream, dtype=torch.float64)
    return (drawn * deviations) @ mixed.T + 0.1 * torch.randn(size, generator=stream, dtype=torch.float64)


def scipys_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """As most implementations compute it."""
    mean_a, mean_b = a.mean(0).numpy(), b.mean(0).numpy()
    covariance_a, covariance_b = a.T.cov().numpy(), b.T.cov().numpy()
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b).real
    return ((mean_a - mean_b) ** 2).sum() + (covariance_a + covariance_b - 2 * root).trace()


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("size", [2, 64, 200])
def test_the_distance_agrees_with_scipys_square_root(size, decay):
    a, b = features(5 * size, size, seed=1, decay=decay), features(4 * size, size, seed=2, decay=decay)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(scipys_distance(a, b), rel=1e-6)


@pytest.mark.parametrize("count_a, count_b", [(30, 400), (400, 30), (30, 40)])
def test_the_distance_agrees_with_scipy_when_there_are_fewer_images_than_features(count_a, count_b):
    a, b = features(count_a, 64, seed=3), features(count_b, 64, seed=4)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(scipys_distance(a, b), rel=1e-6)


@pytest.mark.parametrize("count_a, count_b", [(30, 400), (400, 30), (30, 40)])
def test_the_shared_trace_is_the_sum_of_the_singular_values_between_the_two_sets(count_a, count_b):
    # tr (A B)^(1/2) of A = X^T X and B = Y^T Y is the nuclear norm of X Y^T, which needs no square root.
    a, b = features(count_a, 64, seed=3), features(count_b, 64, seed=4)
    x, y = ((one - one.mean(0)) / (len(one) - 1) ** 0.5 for one in (a, b))
    shared = torch.linalg.svdvals(x @ y.T).sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * shared
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(wanted.item(), rel=1e-9)


def test_the_distance_of_independent_features_is_known():
    a = Moments(torch.tensor([1.0, 2.0, 3.0]).double(), torch.diag(torch.tensor([4.0, 9.0, 0.0]).double()), 100)
    b = Moments(torch.tensor([1.0, 0.0, 3.0]).double(), torch.diag(torch.tensor([1.0, 0.0, 25.0]).double()), 100)
    assert frechet_distance(a, b) == pytest.approx(4 + (2 - 1) ** 2 + 9 + 25)


def test_the_distance_of_a_set_to_itself_is_zero_and_no_distance_depends_on_the_order():
    a, b = moments(features(500, 32, seed=5)), moments(features(300, 32, seed=6))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 0.01


def test_images_that_are_all_the_same_have_the_distance_of_a_point():
    a, point = features(500, 8, seed=7), torch.ones(10, 8)
    wanted = (a.mean(0) - 1).square().sum() + a.var(0).sum()
    for one, other in ((a, point), (point, a)):
        assert frechet_distance(moments(one), moments(other)) == pytest.approx(wanted.item(), rel=1e-9)


def test_moments_are_those_of_numpy_in_float64():
    drawn = features(50, 6, seed=8)
    found = moments(drawn.float())
    assert found.count == 50
    assert found.covariance.dtype == torch.float64
    torch.testing.assert_close(found.mean, drawn.mean(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.covariance, drawn.T.cov(), rtol=0, atol=1e-7)


def test_a_root_times_itself_is_the_covariance_and_is_made_once():
    reference = moments(features(20, 32, seed=9))
    torch.testing.assert_close(reference.root @ reference.root.T, reference.covariance, rtol=0, atol=1e-12)
    assert reference.root.shape == (32, 19)
    assert reference.root is reference.root


def test_too_few_images_and_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match=r"1 image\(s\) have no covariance"):
        moments(torch.ones(1, 4))
    with pytest.raises(UserError, match="not finite"):
        moments(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]))
