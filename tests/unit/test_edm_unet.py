"""The EDM U-Net is as large as it says, and its blocks use their filters in every pass."""

import pytest
import torch
import torch.nn.functional as F

from hpcvision.config import EDMUNetConfig
from hpcvision.models import build_model
from hpcvision.models.counting import multiply_adds, parameters_of
from hpcvision.models.edm_unet import Attention, Recurrent

RANK, EMBEDDING = 12, 128


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table_of_the_design(full: int, half: int, quarter: int, classes: int, passes: int) -> int:
    def block(c: int) -> int:
        of_a_pass = 2 * c + EMBEDDING * RANK + RANK * 2 * c + 2 * c + c  # norm, modulation with bias, gain
        return 2 * (9 * c * c + c) + passes * of_a_pass

    def attention(c: int) -> int:
        return 2 * c + 3 * c * c + c * c + c

    embedding = 64 * EMBEDDING + EMBEDDING + EMBEDDING * EMBEDDING + EMBEDDING + classes * EMBEDDING
    ends = (27 * full + full) + (2 * full + 27 * full + 3)
    changes = full * half + half + half * quarter + quarter
    changes += (quarter + half) * half + half + (half + full) * full + full
    blocks = 2 * block(full) + 2 * block(half) + 2 * block(quarter)
    return embedding + ends + changes + blocks + 2 * attention(half) + attention(quarter)


@pytest.mark.parametrize(
    "width, channels", [(1, (64, 88, 96)), (0.25, (16, 24, 24)), (0.01, (8, 8, 8)), (1.5, (96, 128, 144))]
)
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_parameter_count_is_the_sum_of_the_table(width, channels, passes):
    config = EDMUNetConfig(width=width, passes=passes)
    assert parameters_of(config) == table_of_the_design(*channels, classes=100, passes=passes)


def test_width_1_has_987459_parameters_and_548963584_multiply_adds():
    assert parameters_of(EDMUNetConfig()) == 987_459 < 1_000_000
    assert multiply_adds(EDMUNetConfig()) == 548_963_584


def test_a_block_is_its_two_convolutions_again_and_again_written_plainly():
    block = Recurrent(8, passes=2)
    weights = {name: value.detach() + 0.1 * normal(*value.shape, seed=3) for name, value in block.named_parameters()}
    block.load_state_dict(weights)
    features, embedding = normal(2, 8, 4, 4), normal(2, EMBEDDING, seed=1)
    wanted = features
    for number in range(2):
        norm = (weights[f"norms_before.{number}.{name}"] for name in ("weight", "bias"))
        hidden = F.conv2d(
            F.silu(F.group_norm(wanted, 8, *norm)), weights["first.weight"], weights["first.bias"], padding=1
        )
        modulation = embedding @ weights[f"modulations.{number}.0.weight"].T
        modulation = modulation @ weights[f"modulations.{number}.1.weight"].T + weights[f"modulations.{number}.1.bias"]
        scale, shift = modulation[:, :8, None, None], modulation[:, 8:, None, None]
        hidden = F.silu(F.group_norm(hidden, 8) * (1 + scale) + shift)
        hidden = F.conv2d(hidden, weights["second.weight"], weights["second.bias"], padding=1)
        wanted = wanted + weights[f"gains.{number}.weight"] * hidden
    torch.testing.assert_close(block(features, embedding), wanted)


def test_attention_is_torchs_multihead_attention_around_a_skip():
    ours, features = Attention(16), normal(2, 16, 3, 5)
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    reference.in_proj_weight = torch.nn.Parameter(ours.project_in.weight[:, :, 0, 0])
    torch.nn.init.zeros_(reference.in_proj_bias)
    reference.out_proj.weight = torch.nn.Parameter(ours.project_out.weight[:, :, 0, 0])
    reference.out_proj.bias = ours.project_out.bias
    tokens = F.group_norm(features, 8).flatten(2).mT
    attended = reference(tokens, tokens, tokens)[0].mT.reshape(2, 16, 3, 5)
    torch.testing.assert_close(ours(features, normal(2, EMBEDDING)), features + attended)


def test_a_fresh_block_changes_its_features_little_however_often_it_runs():
    model = build_model(EDMUNetConfig(width=0.1, passes=4))
    features, embedding = normal(4, 8, 16, 16), normal(4, EMBEDDING, seed=1)
    changed = model.down_full(features, embedding) - features
    assert 0 < changed.square().mean() < 0.1 * features.square().mean()
