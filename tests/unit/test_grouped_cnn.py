"""The plain network for AddNIST: its size, and that its channels meet in its head alone."""

import itertools

import torch

from hpcvision.config import GroupedCNNConfig
from hpcvision.config.catalogue import load_job
from hpcvision.models import build_model
from hpcvision.models.counting import multiply_adds, parameters_of


def test_grouped_cnn_has_exactly_97484_parameters_and_needs_6797952_multiply_adds():
    channels, sides, kernels = (3, 72, 72, 120, 120), (14, 14, 7, 7), (25, 9, 9, 9)
    weights = [k * i * o // 3 for k, (i, o) in zip(kernels, itertools.pairwise(channels), strict=True)]
    norms = 2 * (sum(channels[1:]) + 72)
    head = [120 * 72, 72 * 20]
    assert sum(weights) + norms + sum(head) + 20 == parameters_of(GroupedCNNConfig()) == 97_484
    work = sum(side * side * count for side, count in zip(sides, weights, strict=True)) + sum(head)
    assert work == multiply_adds(GroupedCNNConfig()) == 6_797_952


def test_a_channel_changes_its_own_third_of_the_features_and_nothing_else():
    model = build_model(GroupedCNNConfig(width=0.5)).eval()
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        before = model.features(images).unflatten(1, (3, -1)).flatten(2)
        images[:, 1] = torch.rand(2, 28, 28)
        after = model.features(images).unflatten(1, (3, -1)).flatten(2)
    assert (before != after).any(2).tolist() == 2 * [[False, True, False]]


def test_the_job_is_under_the_caps():
    config = load_job("addnist_generic")
    assert config.track == "capped"
    assert (config.train.steps, config.train.global_batch_size) == (10_000, 256)
