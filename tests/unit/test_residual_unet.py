"""The residual U-Net has the paper's size, and its parts compute what they say."""

import math

import pytest
import torch
import torch.nn.functional as F

from hpcvision.config import ResidualUNetConfig
from hpcvision.models.counting import layer_table, multiply_adds
from hpcvision.models.layers import sinusoid
from hpcvision.models.residual_unet import Residual, ResidualUNet, SelfAttention

TINY = ResidualUNetConfig(width=0.3)


def built(config: ResidualUNetConfig = TINY) -> ResidualUNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResidualUNet(config)


def batch(images: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    noise = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(1))
    return noise, torch.arange(images) * 100, torch.arange(images) * 7


def table_of_the_design(full: int, deep: int, classes: int) -> int:
    def residual(i: int, o: int) -> int:
        skip = 0 if i == o else i * o + o
        return 9 * i * o + o + 2 * o + 256 * o + o + 9 * o * o + o + 2 * o + skip

    down = 2 * residual(full, full) + residual(full, deep) + 3 * residual(deep, deep)
    middle = 2 * residual(deep, deep) + 6 * deep**2 + 10 * deep
    grow = 4 * deep**2 + deep
    up = 5 * residual(2 * deep, deep) + residual(deep + full, deep) + 2 * grow
    up += residual(deep + full, full) + 2 * residual(2 * full, full)
    return 256 * classes + 27 * full + full + down + middle + up + 2 * full + 27 * full


@pytest.mark.parametrize("width, channels", [(1, (24, 48)), (0.3, (8, 16)), (0.01, (8, 8)), (1.5, (32, 72))])
def test_the_parameter_count_is_the_sum_of_the_table(width, channels):
    model = built(ResidualUNetConfig(width=width))
    assert sum(p.numel() for p in model.parameters()) == table_of_the_design(*channels, classes=100)


def test_width_1_has_the_papers_948856_parameters():
    assert sum(p.numel() for p in built(ResidualUNetConfig()).parameters()) == 948_856
    assert table_of_the_design(24, 48, classes=100) == 948_856


def test_width_1_needs_174864384_multiply_adds_an_image():
    assert multiply_adds(ResidualUNetConfig()) == 174_864_384


def test_the_layer_table_names_every_parameter():
    assert sum(layer.parameters for layer in layer_table(ResidualUNetConfig())) == 948_856


def test_the_sinusoid_is_128_sines_then_128_cosines():
    row = sinusoid(torch.tensor([0, 777]), 256, spacings=128)[1].double()
    for k in (0, 1, 77, 127):
        angle = 777 * 10_000 ** (-2 * k / 256)
        assert row[k].item() == pytest.approx(math.sin(angle), abs=1e-4)
        assert row[128 + k].item() == pytest.approx(math.cos(angle), abs=1e-4)


def test_self_attention_is_torchs_multihead_attention_and_a_network_for_each_pixel():
    ours, features = SelfAttention(16), torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    torch.nn.init.normal_(ours.project_in.bias)
    reference.in_proj_weight, reference.in_proj_bias = ours.project_in.weight, ours.project_in.bias
    reference.out_proj = ours.project_out
    tokens = features.reshape(2, 16, 15).mT
    normed = F.layer_norm(tokens, (16,))
    tokens = tokens + reference(normed, normed, normed)[0]
    _, first, _, second = ours.network
    tokens = tokens + second(F.gelu(first(F.layer_norm(tokens, (16,)))))
    torch.testing.assert_close(ours(features), tokens.mT.reshape(2, 16, 3, 5))


def test_a_residual_block_shifts_between_its_convolutions_and_activates_last():
    block = Residual(8, 16)
    stream = torch.Generator().manual_seed(0)
    features, embedding = torch.randn(2, 8, 4, 4, generator=stream), torch.randn(2, 256, generator=stream)
    weights = dict(block.named_parameters())
    hidden = F.conv2d(features, weights["first.0.weight"], weights["first.0.bias"], padding=1)
    hidden = F.silu(F.group_norm(hidden, 8, weights["first.1.weight"], weights["first.1.bias"]))
    hidden = hidden + (embedding @ weights["shift.weight"].T + weights["shift.bias"])[:, :, None, None]
    hidden = F.conv2d(hidden, weights["second.0.weight"], weights["second.0.bias"], padding=1)
    hidden = F.group_norm(hidden, 8, weights["second.1.weight"], weights["second.1.bias"])
    skip = F.conv2d(features, weights["skip.weight"], weights["skip.bias"])
    torch.testing.assert_close(block(features, embedding), F.silu(hidden + skip))


def test_the_skips_are_read_last_in_first_out():
    model, read, made = built(), [], []
    for name, stage in model.named_children():
        if name.startswith(("stem", "down_")):
            for block in stage if isinstance(stage, torch.nn.ModuleList) else [stage]:
                block.register_forward_hook(lambda _module, _inputs, output: made.append(output))
        if name.startswith("up_"):
            for block in stage:
                block.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    model.pool.register_forward_hook(lambda _module, _inputs, output: made.append(output))
    model(*batch(1))
    assert len(made) == len(read) == 9
    for wanted, seen in zip(reversed(made), read, strict=True):
        assert torch.equal(seen[:, -wanted.shape[1] :], wanted)
