"""The network whose blocks run several times: its size, what is shared, and what is not."""

import pytest
import torch

from hpcvision.config import CompactNetConfig
from hpcvision.config.catalogue import load_job
from hpcvision.models import build_model
from hpcvision.models.counting import multiply_adds, parameters_of

STEM = 9 * 3 * 32 + 9 * 32 * 64 + 64 * 88
NORMS = 2 * (32 + 64 + 88)
WEIGHTS = 9 * 88 + 88 * 88


@pytest.mark.parametrize("passes, parameters", [(1, 96_412), (2, 98_876)])
def test_compact_net_has_as_many_parameters_as_its_layers(passes, parameters):
    blocks = 7 * (WEIGHTS + passes * 2 * 2 * 88)
    assert STEM + NORMS + blocks + 88 * 100 + 100 == parameters
    assert parameters_of(CompactNetConfig(passes=passes)) == parameters


@pytest.mark.parametrize("passes", [1, 2])
def test_every_pass_costs_the_work_of_its_filters_once_more(passes):
    stem = 32 * 32 * 9 * 3 * 32 + 16 * 16 * 9 * 32 * 64 + 8 * 8 * 64 * 88
    assert multiply_adds(CompactNetConfig(passes=passes)) == stem + passes * 7 * 8 * 8 * WEIGHTS + 88 * 100


def test_a_block_that_mixes_nothing_hands_on_what_came_in():
    block = build_model(CompactNetConfig(width=0.25)).blocks[0].eval()
    torch.nn.init.zeros_(block.mix.weight)
    features = torch.randn(2, 22, 8, 8)
    with torch.no_grad():
        assert torch.equal(block(features), features)


def test_passes_share_filters_and_have_norms_of_their_own():
    model = build_model(CompactNetConfig(width=0.25, passes=3)).train()
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    means = [norm.running_mean for norm in model.blocks[0].filtered]
    assert len(means) == 3
    assert not torch.equal(means[0], means[1])
    assert not torch.equal(means[1], means[2])


def test_the_job_has_the_batch_of_paper_a_and_is_under_the_caps():
    config = load_job("cifar100_compact")
    assert config.track == "capped"
    assert (config.train.steps, config.train.global_batch_size) == (10_000, 512)
    assert parameters_of(config.model) < 100_000
