"""Accuracy comes with an interval, a spread over batches, and the table of confusions."""

import math

import numpy as np
import pytest
import torch

from hpcvision.metrics.accuracy import batch_deviation, confusion_matrix, wilson_interval

Z = 1.959964


@pytest.mark.parametrize("correct, total", [(0, 1), (1, 1), (0, 20), (20, 20), (7, 10), (5630, 10_000), (7490, 10_000)])
def test_the_ends_of_the_interval_are_the_shares_from_which_the_count_is_z_deviations_away(correct, total):
    # (share - p)^2 = z^2 p (1 - p) / n, solved for p.
    share = correct / total
    roots = np.roots([1 + Z**2 / total, -2 * share - Z**2 / total, share**2])
    assert wilson_interval(correct, total) == pytest.approx(sorted(roots.real), abs=1e-7)


@pytest.mark.parametrize(
    "correct, total, low, high",
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_has_its_published_values(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_stays_between_0_and_1():
    for total in (1, 3, 1000):
        assert 0 <= wilson_interval(0, total)[0] < 1e-12
        assert 1 - 1e-12 < wilson_interval(total, total)[1] <= 1


def test_the_interval_holds_the_true_share_in_95_of_100_samples():
    random = np.random.default_rng(0)
    ends = [wilson_interval(int(correct), 500) for correct in random.binomial(500, 0.56, 4000)]
    held = np.mean([low <= 0.56 <= high for low, high in ends])
    assert held == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


@pytest.mark.parametrize("total, batch", [(100, 10), (103, 10), (7, 100), (64, 64)])
def test_the_deviation_over_batches_is_numpys(total, batch):
    correct = torch.rand(total, generator=torch.Generator().manual_seed(total)) < 0.6
    means = [correct.numpy()[first : first + batch].mean() for first in range(0, total, batch)]
    assert batch_deviation(correct, batch) == pytest.approx(float(np.std(means)))


def test_the_confusion_matrix_has_the_true_class_in_rows_and_the_predicted_one_in_columns():
    stream = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(7, (2, 500), generator=stream)
    wanted = np.zeros((7, 7), dtype=np.int64)
    for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True):
        wanted[label, prediction] += 1
    assert np.array_equal(confusion_matrix(labels, predictions, 7).numpy(), wanted)


def test_classes_that_never_occur_keep_their_row_and_column():
    matrix = confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, 1]), 5)
    assert matrix.tolist()[0] == [1, 1, 0, 0, 0]
    assert matrix.shape == (5, 5)
    assert matrix.sum() == 2
