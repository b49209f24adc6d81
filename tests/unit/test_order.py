"""Tests of which samples a step sees."""

import pytest
import torch

from hpcvision.data.order import batch_indices


def whole_row(seed: int, *, steps: int, batch: int, size: int) -> torch.Tensor:
    return torch.cat([batch_indices(seed, step, batch, size) for step in range(steps)])


@pytest.mark.parametrize("batch", [1, 7, 10, 13, 20, 64])
def test_every_epoch_shows_every_sample_exactly_once_whatever_the_batch(batch):
    size, epochs = 20, 16
    row = whole_row(3, steps=size * epochs // batch, batch=batch, size=size)
    complete = row[: len(row) // size * size].view(-1, size)
    assert len(complete) >= epochs - 4
    assert (complete.sort(dim=1).values == torch.arange(size)).all()


def test_the_order_over_time_does_not_depend_on_the_batch_size():
    rows = [whole_row(5, steps=240 // batch, batch=batch, size=23) for batch in (1, 8, 48, 240)]
    assert all(torch.equal(row, rows[0]) for row in rows)


def test_a_step_asked_for_first_equals_the_same_step_reached_from_the_start():
    import hpcvision.data.order as order

    row = whole_row(0, steps=30, batch=9, size=50)
    for step in (29, 17, 5, 28):
        order._permutation.cache_clear()
        assert torch.equal(batch_indices(0, step, 9, 50), row[step * 9 : step * 9 + 9])


def test_epochs_and_seeds_have_different_permutations():
    one, two = batch_indices(0, 0, 1000, 1000), batch_indices(0, 1, 1000, 1000)
    other_seed = batch_indices(1, 0, 1000, 1000)
    for a, b in ((one, two), (one, other_seed), (one, torch.arange(1000))):
        # Two random permutations of 1000 agree in one place on average; 12 or more has a probability below 1e-9.
        assert (a == b).sum() < 12


def test_a_batch_larger_than_the_split_holds_several_epochs():
    batch = batch_indices(0, 0, 35, 10)
    assert batch.dtype == torch.int64
    assert batch.shape == (35,)
    assert batch.bincount(minlength=10).min() >= 3
    assert batch.bincount(minlength=10).max() <= 4


def test_changing_a_batch_in_place_does_not_change_later_batches():
    before = batch_indices(0, 0, 10, 10)
    kept = before.clone()
    before.zero_()
    assert torch.equal(batch_indices(0, 0, 10, 10), kept)


def test_step_ten_thousand_is_as_recorded():
    """The order is part of every run's identity: a change of it must be deliberate."""
    assert batch_indices(0, 10_000, 6, 45_000).tolist() == [15935, 27803, 32739, 15856, 12081, 15991]
