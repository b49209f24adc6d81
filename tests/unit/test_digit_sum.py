"""The network that adds: exact sums, no order of the channels, and nothing but sums to learn from."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from hpcvision import data
from hpcvision.config import DataConfig, DigitSumConfig
from hpcvision.config.catalogue import load_job
from hpcvision.models import build_model
from hpcvision.models.counting import multiply_adds, parameters_of
from hpcvision.models.digit_sum import added

SMALL = DigitSumConfig(width=0.25)


@pytest.fixture
def model():
    return build_model(SMALL).eval()


def test_digit_sum_has_exactly_97764_parameters_and_needs_11098368_multiply_adds():
    channels = (1, 16, 24, 28, 32, 32)
    sides, kernels = (12, 10, 8, 6, 4), (25, 9, 9, 9, 9)
    weights = [k * i * o for k, (i, o) in zip(kernels, itertools.pairwise(channels), strict=True)]
    last = 32 * 4 * 4 * 10
    norms = 2 * (sum(channels[1:]) + 10)
    assert 3 * (sum(weights) + last + norms) == parameters_of(DigitSumConfig()) == 97_764
    work = sum(side * side * count for side, count in zip(sides, weights, strict=True)) + last
    assert 3 * 3 * work == multiply_adds(DigitSumConfig()) == 11_098_368


def test_the_digits_are_those_of_the_geometric_mean_of_what_the_readers_say(model):
    images = torch.rand(4, 3, 28, 28)
    model.train()  # the norms of an untrained network make it say something with a batch's own statistics only
    with torch.no_grad():
        each = [read(images.view(12, 1, 28, 28)).softmax(1).view(4, 3, 10) for read in model.readers]
        mean = (each[0] * each[1] * each[2]) ** (1 / 3)
        assert torch.allclose(model.digits(images), mean / mean.sum(2, keepdim=True), atol=1e-6)
    assert not torch.allclose(each[0], each[1], atol=1e-2)


@pytest.mark.parametrize("m, n", [(10, 10), (19, 10), (1, 4), (4, 1)])
def test_two_distributions_are_added_as_numpy_convolves_them(m, n):
    one, other = (torch.rand(5, count, dtype=torch.float64) for count in (m, n))
    expected = np.stack([np.convolve(a, b) for a, b in zip(one.numpy(), other.numpy(), strict=True)])
    assert np.allclose(added(one, other).numpy(), expected, atol=1e-14)


def test_the_logits_are_the_log_probabilities_of_all_triples_with_that_sum(model):
    images = torch.rand(4, 3, 28, 28)
    with torch.no_grad():
        digits, logits = model.digits(images).double(), model(images)
    expected = torch.zeros(4, 28, dtype=torch.float64)
    for a, b, c in itertools.product(range(10), repeat=3):
        expected[:, a + b + c] += digits[:, 0, a] * digits[:, 1, b] * digits[:, 2, c]
    assert torch.allclose(logits.double(), expected[:, 1:21].log(), atol=1e-5)
    assert torch.allclose(expected.sum(1), torch.ones(4, dtype=torch.float64), atol=1e-6)


def test_the_order_of_the_channels_does_not_matter(model):
    images = torch.rand(4, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(model(images), model(images[:, [2, 0, 1]]), atol=1e-5)


def test_a_sum_that_is_all_but_impossible_has_a_finite_logit_and_gradient(model):
    with torch.no_grad():
        for read in model.readers:
            read[-1].weight.zero_()
            read[-1].bias.copy_(torch.tensor([200.0] + 9 * [0.0]))  # three zeros, for certain
    loss = functional.cross_entropy(model(torch.rand(2, 3, 28, 28)), torch.tensor([19, 10]))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_digits_are_found_from_sums_alone():
    shape = {"image_size": 28, "num_classes": 20}
    images, labels = data.load(DataConfig(source="synthetic"), "train", **shape)
    torch.manual_seed(0)
    model = build_model(SMALL).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        chosen = torch.arange(64) + 64 * (step % 150)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[chosen].float() / 255), labels[chosen]).backward()
        optimizer.step()
    model.eval()
    test_images, test_labels = data.load(DataConfig(source="synthetic"), "test", **shape)
    with torch.no_grad():
        right = (model(test_images.float() / 255).argmax(1) == test_labels).double().mean()
    assert right > 0.6  # a twentieth would be chance; five per cent of the labels are wrong


def test_the_job_is_under_the_caps_and_reads_no_digit_labels():
    config = load_job("addnist_digit_sum")
    assert config.track == "capped"
    assert (config.train.steps, config.train.global_batch_size) == (6_000, 256)
    assert config.data.augmentation.per_channel
