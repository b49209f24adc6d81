"""BatchNorm over the global batch is torch's BatchNorm where one process has the whole batch."""

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from hpcvision.config import BabyMobileNetConfig
from hpcvision.models import build_model
from hpcvision.training.batch_norm import SynchronizedBatchNorm2d, synchronize

CHANNELS = 5


@pytest.fixture(scope="module", autouse=True)
def _world_of_one():
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def pair():
    """torch's layer and ours, with the same weights and running statistics that are not those of a fresh layer."""
    torchs = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.3)
    ours = SynchronizedBatchNorm2d(CHANNELS, eps=1e-3, momentum=0.3)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in torchs.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(CHANNELS, generator=stream) + 0.5)
    ours.load_state_dict(torchs.state_dict())
    return torchs, ours


def images(seed=1, **options):
    """(4, 5, 6, 7), each channel with a mean and a spread of its own."""
    stream = torch.Generator().manual_seed(seed)
    spread, mean = torch.tensor([1.0, 0.1, 3.0, 10.0, 1e-3]), torch.tensor([0.0, 5.0, -2.0, 100.0, 1.0])
    drawn = torch.randn(4, CHANNELS, 6, 7, generator=stream) * spread[:, None, None] + mean[:, None, None]
    return drawn.to(**options)


def run(layer, batch, *, steps=2):
    """Outputs, gradients of input, weight and bias, and the buffers after some steps in training."""
    found = []
    for step in range(steps):
        given = batch.clone().requires_grad_()
        made = layer(given)
        upstream = torch.randn(made.shape, generator=torch.Generator().manual_seed(step)).to(made.dtype)
        found += [made, *torch.autograd.grad(made, [given, layer.weight, layer.bias], upstream)]
    return found + [buffer.clone() for buffer in layer.buffers()]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_gradients_and_running_statistics_are_torchs(pair, memory_format):
    torchs, ours = pair
    batch = images().to(memory_format=memory_format)
    for exact, found in zip(run(torchs.double(), batch.double()), run(ours, batch), strict=True):
        # Measured: 2e-6 at most; torch's own layer in float32 1e-6.
        assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_gradients_are_those_of_finite_differences(pair):
    layer = pair[1]
    given = images(seed=3)[:2, :, :2, :2].clone().requires_grad_()
    direction = torch.randn(given.shape, generator=torch.Generator().manual_seed(4)) * 1e-3
    weights = torch.randn(given.shape, generator=torch.Generator().manual_seed(5))

    def height(batch):
        return (layer(batch) * weights).sum()

    (gradient,) = torch.autograd.grad(height(given), given)
    with torch.no_grad():
        rise = (height(given + direction) - height(given - direction)) / 2
    torch.testing.assert_close((gradient * direction).sum(), rise, rtol=2e-2, atol=1e-3)


def test_evaluation_is_torchs_bit_for_bit_and_changes_nothing(pair):
    torchs, ours = (layer.eval() for layer in pair)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    assert torch.equal(ours(images()), torchs(images()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_the_state_has_torchs_names_shapes_and_types(pair):
    torchs, ours = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in layer.state_dict().items()} for layer in pair
    )
    assert ours == torchs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_in_and_out_and_the_statistics_are_float32(pair, dtype):
    torchs, ours = pair
    batch = images(dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = ours(batch)
    assert made.dtype == dtype
    (gradient,) = torch.autograd.grad(made.float().square().sum(), batch)
    assert gradient.dtype == dtype
    torchs(batch.detach().float())
    for name in ("running_mean", "running_var"):
        assert getattr(ours, name).dtype == torch.float32
        torch.testing.assert_close(getattr(ours, name), getattr(torchs, name), rtol=1e-5, atol=1e-5)


def test_digits_are_not_lost_where_the_mean_is_far_larger_than_the_spread(pair):
    # E[x^2] - E[x]^2 in float32 would be off by about 1 here.
    torch.manual_seed(0)
    batch = 1000 + 0.1 * torch.randn(4, CHANNELS, 6, 7)
    exact = (batch.double() - batch.double().mean((0, 2, 3))[:, None, None]) / batch.double().std(
        (0, 2, 3), correction=0
    )[:, None, None]
    _, ours = pair
    with torch.no_grad():
        ours.weight.fill_(1)
        ours.bias.fill_(0)
        ours.eps = 0.0
    torch.testing.assert_close(ours(batch).double(), exact, rtol=0, atol=5e-3)


def test_every_layer_of_a_nested_model_is_turned_and_keeps_its_state():
    model = nn.Sequential(
        nn.BatchNorm2d(3, eps=0.1, momentum=0.7),
        nn.Sequential(nn.ReLU(), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))),
        nn.ModuleDict({"deep": nn.ModuleList([nn.BatchNorm2d(5)])}),
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    synchronize(model)
    kinds = [type(part) for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert kinds == [SynchronizedBatchNorm2d] * 3
    assert (model[0].eps, model[0].momentum) == (0.1, 0.7)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_that_is_turned_stays_on_its_device():
    model = nn.Sequential(nn.BatchNorm2d(3, device="meta"))
    synchronize(model)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_a_whole_network_is_turned_and_stays_in_its_mode():
    model = build_model(BabyMobileNetConfig(width=0.25), seed=0).eval()
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model(batch)
    synchronize(model)
    assert not [part for part in model.modules() if type(part) is nn.BatchNorm2d]
    assert torch.equal(model(batch), before)
