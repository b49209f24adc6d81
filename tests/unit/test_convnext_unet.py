"""The ConvNeXt U-Net has the paper's size, and its parts compute what they say."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpcvision.config.models import ConvNextUNetConfig
from hpcvision.models.convnext_unet import ConvNextUNet, FullAttention, LinearAttention
from hpcvision.models.layers import sinusoid

TINY = ConvNextUNetConfig(width=0.1)


def built(config: ConvNextUNetConfig = TINY) -> ConvNextUNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvNextUNet(config)


def batch(images: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    noise = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(1))
    return noise, torch.arange(images) * 100, torch.arange(images) * 7


def table_of_the_paper(stem: int, full: int, half: int, quarter: int, classes: int) -> int:
    def block(i: int, o: int, embedded: bool = True) -> int:
        h = 2 * o
        count = 49 * i + i + 2 * i + 9 * i + i + i * h + h + 2 * h + 9 * h + h + h * o + o
        return count + (128 * i + i if embedded else 0) + (0 if i == o else i * o + o)

    def stage(i: int, o: int) -> int:
        return block(i, o) + block(o, o) + 517 * o

    embedding = 32 * 128 + 128 + 128 * 128 + 128 + classes * 128
    down = stage(stem, full) + 16 * full**2 + stage(full, half) + 16 * half**2 + stage(half, quarter)
    middle = block(quarter, quarter) + 515 * quarter
    up = stage(2 * quarter, half) + 16 * half**2 + stage(2 * half, full) + 16 * full**2
    return 49 * 3 * stem + stem + embedding + down + middle + up + block(full, full, False) + 3 * full + 3


@pytest.mark.parametrize(
    "width, channels", [(1, (20, 32, 64, 128)), (0.5, (10, 16, 32, 64)), (0.25, (5, 8, 16, 32)), (0.05, (4, 4, 4, 6))]
)
def test_the_parameter_count_is_the_sum_of_the_table(width, channels):
    model = built(ConvNextUNetConfig(width=width))
    assert sum(p.numel() for p in model.parameters()) == table_of_the_paper(*channels, classes=100)


def test_width_1_has_the_papers_960223_parameters():
    assert sum(p.numel() for p in built(ConvNextUNetConfig()).parameters()) == 960_223
    assert table_of_the_paper(20, 32, 64, 128, classes=100) == 960_223


def test_width_1_needs_130775552_multiply_adds_an_image():
    with torch.device("meta"):
        model = ConvNextUNet(ConvNextUNetConfig())
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 32, 32), torch.empty(1, dtype=torch.int64), torch.empty(1, dtype=torch.int64))
    assert counter.get_total_flops() == 2 * 130_775_552


def test_the_sinusoid_is_16_sines_then_16_cosines():
    row = sinusoid(torch.tensor([0, 777]), 32, spacings=15)[1].double()
    for k in range(16):
        angle = 777 * math.exp(-k * math.log(10_000) / 15)
        assert row[k].item() == pytest.approx(math.sin(angle), abs=1e-4)
        assert row[16 + k].item() == pytest.approx(math.cos(angle), abs=1e-4)


def heads_written_plainly(attention, features):
    weights = attention.project_in.weight[:, :, 0, 0]
    positions = attention.norm(features)[0].flatten(1)
    for head in range(4):
        rows = slice(32 * head, 32 * head + 32)
        yield (part[rows] @ positions for part in weights.split(128))


def test_full_attention_is_softmax_attention_between_all_pixels():
    attention, features = FullAttention(8), torch.randn(1, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    heads = [
        value @ (query.T @ key / 32**0.5).softmax(dim=1).T
        for query, key, value in heads_written_plainly(attention, features)
    ]
    expected = features + attention.project_out(torch.cat(heads).reshape(1, 128, 3, 5))
    torch.testing.assert_close(attention(features), expected, rtol=0, atol=1e-5)


def test_linear_attention_applies_the_summed_context_to_every_query():
    attention, features = LinearAttention(8), torch.randn(1, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    heads = []
    for query, key, value in heads_written_plainly(attention, features):
        weights = key.softmax(dim=1).T @ (query.softmax(dim=0) / 32**0.5)  # (from pixel, to pixel)
        heads.append(value @ weights)
    expected = features + attention.project_out(torch.cat(heads).reshape(1, 128, 3, 5))
    torch.testing.assert_close(attention(features), expected, rtol=0, atol=1e-5)


def test_channels_last_gives_the_same_prediction():
    model, (images, timesteps, labels) = built(), batch(2)
    expected = model(images, timesteps, labels)
    moved = model.to(memory_format=torch.channels_last)
    actual = moved(images.contiguous(memory_format=torch.channels_last), timesteps, labels)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
