"""The moving average of the weights is the plain loop written here."""

import pytest
import torch
from torch import nn

from hpcvision.config import EmaConfig
from hpcvision.training.ema import WeightAverage


def model_with_buffers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()


def disturb(model, step):
    """Other weights, other normalisation statistics, another count; the same for the same step."""
    stream = torch.Generator().manual_seed(step)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=stream))
        else:
            tensor.fill_(step)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("beta", [0.9, 0.2])
def test_the_average_is_beta_average_plus_one_minus_beta_weights(beta, warmup, every):
    model = model_with_buffers()
    average = WeightAverage(EmaConfig(beta=beta, warmup=warmup, every=every), model)
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    updates = 0
    for step in range(1, 31):
        disturb(model, step)
        average.update(model, torch.tensor(average.share(step), dtype=torch.float64))
        if step % every == 0:
            b = min(beta, (1 + updates) / (10 + updates)) if warmup else beta
            for name, tensor in model.state_dict().items():
                is_number = tensor.is_floating_point()
                wanted[name] = b * wanted[name] + (1 - b) * tensor if is_number else tensor.clone()
            updates += 1
    torch.testing.assert_close(average.state, wanted)


def test_before_the_first_update_the_average_is_the_model():
    model = model_with_buffers()
    average = WeightAverage(EmaConfig(), model)
    assert all(torch.equal(average.state[name], tensor) for name, tensor in model.state_dict().items())


def test_the_average_does_not_follow_the_model_by_sharing_its_memory():
    model = model_with_buffers()
    average = WeightAverage(EmaConfig(), model)
    before = average.state["0.weight"].clone()
    disturb(model, 1)
    assert torch.equal(average.state["0.weight"], before)


def test_between_updates_nothing_changes():
    model = model_with_buffers()
    average = WeightAverage(EmaConfig(every=5), model)
    before = {name: tensor.clone() for name, tensor in average.state.items()}
    disturb(model, 1)
    for step in (1, 2, 3, 4):
        average.update(model, torch.tensor(average.share(step)))
    assert all(torch.equal(average.state[name], before[name]) for name in before)
    assert average.updates == 0


def test_a_count_is_copied_and_not_averaged():
    model = model_with_buffers()
    average = WeightAverage(EmaConfig(), model)
    disturb(model, 7)
    average.update(model, torch.tensor(average.share(7)))
    assert average.state["1.num_batches_tracked"] == 7


def test_the_warm_up_forgets_nine_tenths_of_the_first_weights_at_once_and_ends_at_beta():
    average = WeightAverage(EmaConfig(beta=0.998), model_with_buffers())
    assert average.next_beta == 0.1
    average.updates = 100_000
    assert average.next_beta == 0.998


def test_without_warm_up_beta_is_the_same_from_the_start():
    assert WeightAverage(EmaConfig(beta=0.998, warmup=False), model_with_buffers()).next_beta == 0.998


def test_an_average_that_was_stored_goes_on_as_if_it_had_never_stopped():
    def walk(average, steps):
        for step in steps:
            disturb(model, step)
            average.update(model, torch.tensor(average.share(step)))

    model = model_with_buffers()
    whole, first = WeightAverage(EmaConfig(), model), WeightAverage(EmaConfig(), model)
    walk(whole, range(1, 9))
    walk(first, range(1, 5))
    second = WeightAverage(EmaConfig(), model_with_buffers())
    second.load({name: tensor.clone() for name, tensor in first.state.items()}, first.updates)
    walk(second, range(5, 9))
    assert all(torch.equal(second.state[name], whole.state[name]) for name in whole.state)


def test_the_gradient_does_not_flow_into_the_average():
    model = model_with_buffers()
    average = WeightAverage(EmaConfig(), model)
    average.update(model, torch.tensor(average.share(1)))
    assert not any(tensor.requires_grad for tensor in average.state.values())
