"""The models have the papers' sizes, and a model over the cap is refused with a way out."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from hpcvision.config import (
    CAPS,
    MODEL_CONFIGS,
    AddNISTCNNConfig,
    BabyMobileNetConfig,
    ConvNextUNetConfig,
    DataConfig,
    DenoiserConfig,
    DiffuseConfig,
    RunConfig,
)
from hpcvision.errors import CapExceeded
from hpcvision.models import MODELS, build_model
from hpcvision.models.counting import (
    check_cap,
    count_parameters,
    example_inputs,
    layer_table,
    multiply_adds,
    parameters_of,
    widest_below,
)
from hpcvision.models.layers import DepthwiseSeparable, scaled, spatial_mean

EVERY = [config() for config in MODEL_CONFIGS]


def kinds(config):
    return config.kind


def run_of(model, **fields):
    task = {"task": DiffuseConfig()} if isinstance(model, DenoiserConfig) else {}
    source = "addnist" if model.num_classes == 20 else "cifar100"
    return RunConfig(name="x", model=model, data=DataConfig(source=source), **task, **fields)


def convolution(inputs, outputs):
    return 9 * inputs * outputs + outputs


def batch_norm(channels):
    return 2 * channels


def separable(inputs, outputs):
    return 9 * inputs + inputs + inputs * outputs + outputs


def linear(inputs, outputs):
    return inputs * outputs + outputs


def baby_mobilenet_by_hand(a=32, b=64, c=120, d=220, e=120, classes=100):
    stem = convolution(3, a) + batch_norm(a) + convolution(a, b) + batch_norm(b)
    blocks = sum(separable(i, o) + batch_norm(o) for i, o in ((b, c), (c, d), (d, e)))
    return stem + blocks + linear(e, classes)


def addnist_cnn_by_hand(a=16, b=32, c=64, d=64, hidden=64):
    convolutions = convolution(3, a) + convolution(a, b) + convolution(b, c) + convolution(c, d)
    return convolutions + linear(9 * d, hidden) + linear(hidden, 20)


def test_baby_mobilenet_has_exactly_97584_parameters():
    assert baby_mobilenet_by_hand() == 97_584
    assert count_parameters(build_model(BabyMobileNetConfig())) == 97_584


def test_addnist_cnn_has_exactly_98740_parameters():
    assert addnist_cnn_by_hand() == 98_740
    assert count_parameters(build_model(AddNISTCNNConfig())) == 98_740


@pytest.mark.parametrize("width", [0.1, 0.5, 1.01, 2])
def test_width_scales_every_channel(width):
    wide = [round(width * channels) for channels in (32, 64, 120, 220, 120)]
    assert parameters_of(BabyMobileNetConfig(width=width)) == baby_mobilenet_by_hand(*wide)
    wide = [round(width * channels) for channels in (16, 32, 64, 64, 64)]
    assert parameters_of(AddNISTCNNConfig(width=width)) == addnist_cnn_by_hand(*wide)


def test_no_width_is_so_small_that_a_layer_vanishes():
    assert scaled(32, 1e-9) == 1


def test_baby_mobilenet_needs_9718752_multiply_adds_an_image():
    stem = 32 * 32 * 27 * 32 + 16 * 16 * 288 * 64
    blocks = sum(8 * 8 * (9 * i + i * o) for i, o in ((64, 120), (120, 220), (220, 120)))
    assert stem + blocks + 120 * 100 == 9_718_752
    assert multiply_adds(BabyMobileNetConfig()) == 9_718_752


def test_addnist_cnn_needs_2514944_multiply_adds_an_image():
    sides, channels = (28, 14, 7, 3), (3, 16, 32, 64, 64)
    convolutions = sum(s * s * 9 * i * o for s, (i, o) in zip(sides, itertools.pairwise(channels), strict=True))
    assert convolutions + 576 * 64 + 64 * 20 == 2_514_944
    assert multiply_adds(AddNISTCNNConfig()) == 2_514_944


def test_convnext_unet_needs_130775552_multiply_adds_an_image():
    # Its arithmetic is in test_convnext_unet.py.
    assert multiply_adds(ConvNextUNetConfig()) == 130_775_552


@pytest.mark.parametrize("config", EVERY, ids=kinds)
def test_the_layer_table_holds_every_parameter(config):
    assert sum(layer.parameters for layer in layer_table(config)) == parameters_of(config)


@pytest.mark.parametrize("config", EVERY[:3], ids=kinds)
def test_the_layer_table_of_a_classifier_holds_every_multiply_add(config):
    assert sum(layer.multiply_adds for layer in layer_table(config)) == multiply_adds(config)


def test_the_layer_table_shows_the_shapes_after_each_layer():
    rows = {layer.name: layer.output for layer in layer_table(BabyMobileNetConfig())}
    assert rows["stem.0"] == (32, 32, 32)
    assert rows["blocks.1.0"] == (220, 8, 8)
    assert rows["classifier"] == (100,)


@pytest.mark.parametrize("inputs, outputs", [(64, 120), (120, 220), (220, 120), (3, 5)])
def test_a_depthwise_separable_layer_knows_its_share_of_a_standard_convolution(inputs, outputs):
    share = DepthwiseSeparable(inputs, outputs).share_of_standard
    assert share == separable(inputs, outputs) / convolution(inputs, outputs)
    # The paper counts no biases: (9 M + M N) / (9 M N) = 1/N + 1/9. Ours add at most (M + N) / (9 M N).
    assert share == pytest.approx(1 / outputs + 1 / 9, abs=(1 / inputs + 1 / outputs) / 9)


def test_a_depthwise_separable_layer_computes_a_filter_per_channel_and_then_a_mix():
    layer, images = DepthwiseSeparable(3, 4), torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    depthwise, pointwise = layer
    filtered = [
        functional.conv2d(images[:, i : i + 1], depthwise.weight[i : i + 1], depthwise.bias[i : i + 1], padding=1)
        for i in range(3)
    ]
    mixed = torch.einsum("oi,bihw->bohw", pointwise.weight[:, :, 0, 0], torch.cat(filtered, 1))
    torch.testing.assert_close(layer(images), mixed + pointwise.bias[:, None, None])


def test_the_layer_table_gives_the_share_of_the_three_separable_layers_only():
    shares = [layer.share_of_standard for layer in layer_table(BabyMobileNetConfig()) if layer.share_of_standard]
    wanted = [separable(i, o) / convolution(i, o) for i, o in ((64, 120), (120, 220), (220, 120))]
    assert shares == wanted


def assert_same_function(ours, wanted, weights):
    """Same values, and the same gradients of a sum of their squares."""
    torch.testing.assert_close(ours, wanted)
    gradients = [torch.autograd.grad(values.square().sum(), weights) for values in (ours, wanted)]
    torch.testing.assert_close(*gradients)


def plain_baby_mobilenet(weights, images, *, training):
    """Paper A, figure 1: ReLU before max-pool; dropout off."""

    def normalise(values, name):
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        if training:
            mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
        scaled = (values - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def convolve(values, name, **settings):
        return functional.conv2d(values, weights[f"{name}.weight"], weights[f"{name}.bias"], **settings)

    for first in (0, 4):
        images = normalise(convolve(images, f"stem.{first}", padding=1), f"stem.{first + 1}").relu()
        images = functional.max_pool2d(images, 2)
    for block in range(3):
        images = convolve(images, f"blocks.{block}.0.0", padding=1, groups=images.shape[1])
        images = normalise(convolve(images, f"blocks.{block}.0.1"), f"blocks.{block}.1").relu()
    return images.mean((2, 3)) @ weights["classifier.weight"].T + weights["classifier.bias"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_baby_mobilenet_is_the_function_of_the_paper(training, memory_format):
    stream = torch.Generator().manual_seed(0)
    model = build_model(BabyMobileNetConfig(dropout=0)).double().train(training)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():  # negative scales and uneven statistics too
            tensor.copy_(torch.randn(tensor.shape, generator=stream))
        if name.endswith("running_var"):
            tensor.abs_().add_(0.1)
    images = torch.randn(4, 3, 32, 32, generator=stream).double()
    statistics = copy.deepcopy(dict(model.named_buffers()))
    weights = dict(model.named_parameters())
    wanted = plain_baby_mobilenet(weights | statistics, images, training=training)
    ours = model.to(memory_format=memory_format)(images.to(memory_format=memory_format))
    assert_same_function(ours, wanted, list(weights.values()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_the_mean_over_pixels_keeps_the_memory_format(memory_format):
    values = torch.randn(2, 5, 4, 3).to(memory_format=memory_format).requires_grad_()
    means = spatial_mean(values)
    torch.testing.assert_close(means, values.detach().mean((2, 3)))
    (gradient,) = torch.autograd.grad(means.square().sum(), values)
    assert gradient.is_contiguous(memory_format=memory_format)


def test_dropout_acts_in_training_only():
    model, images = build_model(BabyMobileNetConfig(dropout=0.5)), torch.randn(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_addnist_cnn_is_the_function_of_the_paper():
    model = build_model(AddNISTCNNConfig()).double()
    weights = list(model.parameters())
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    values = images
    for layer in range(4):
        values = functional.conv2d(values, weights[2 * layer], weights[2 * layer + 1], padding=1).relu()
        if layer < 3:
            values = functional.max_pool2d(values, 2)
    hidden = (values.flatten(1) @ weights[8].T + weights[9]).relu()
    assert_same_function(model(images), hidden @ weights[10].T + weights[11], weights)


def test_every_model_has_its_configuration_and_every_configuration_its_model():
    assert list(MODELS) == [config.kind for config in EVERY]


@pytest.mark.parametrize("config", EVERY, ids=kinds)
def test_every_model_maps_the_shape_it_says(config):
    config = config.model_copy(update={"width": 0.1})
    output = build_model(config)(*example_inputs(config, 2, "cpu"))
    images = (2, 3, config.image_size, config.image_size)
    assert output.shape == (images if isinstance(config, DenoiserConfig) else (2, config.num_classes))


@pytest.mark.parametrize("config", EVERY, ids=kinds)
def test_every_parameter_of_every_model_gets_a_gradient(config):
    config = config.model_copy(update={"width": 0.1})
    model = build_model(config)
    model(*example_inputs(config, 2, "cpu")).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("config", EVERY, ids=kinds)
def test_the_initial_weights_depend_on_the_seed_alone(config):
    config = config.model_copy(update={"width": 0.1})
    torch.manual_seed(1)
    one = build_model(config, seed=3).state_dict()
    torch.manual_seed(2)
    torch.rand(100)
    again, other = build_model(config, seed=3).state_dict(), build_model(config, seed=4).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_building_a_model_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    build_model(AddNISTCNNConfig(width=0.1))
    assert torch.equal(torch.rand(3), wanted)


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16


def test_buffers_are_not_parameters():
    assert count_parameters(nn.BatchNorm2d(7)) == 14


@pytest.mark.parametrize("config", EVERY, ids=kinds)
def test_the_widest_model_that_fits_fits_and_the_next_thousandth_does_not(config):
    cap = CAPS["diffuse" if isinstance(config, DenoiserConfig) else "classify"].parameters
    widest = widest_below(config, cap)
    over = config.model_copy(update={"width": (round(1000 * widest) + 1) / 1000})
    assert parameters_of(config.model_copy(update={"width": widest})) < cap <= parameters_of(over)


@pytest.mark.parametrize("config", EVERY, ids=kinds)
def test_a_model_over_the_cap_is_refused_with_count_cap_and_a_width_that_fits(config):
    wide = config.model_copy(update={"width": 2.0})
    run = run_of(wide)
    cap = CAPS[run.task.kind].parameters
    assert cap == {"classify": 100_000, "diffuse": 1_000_000}[run.task.kind]
    with pytest.raises(CapExceeded) as caught:
        check_cap(run)
    message = str(caught.value)
    assert f"{config.kind} has {parameters_of(wide):,} parameters" in message
    assert f"is below {cap:,}" in message
    hinted = float(message.partition("try model.width=")[2].split(",")[0])
    assert check_cap(run_of(config.model_copy(update={"width": hinted}))) < cap


def test_a_model_with_exactly_as_many_parameters_as_the_cap_is_refused(monkeypatch):
    from hpcvision.config import Cap

    run = run_of(BabyMobileNetConfig())
    monkeypatch.setitem(CAPS, "classify", Cap(parameters=97_585, steps=10_000))
    assert check_cap(run) == 97_584
    monkeypatch.setitem(CAPS, "classify", Cap(parameters=97_584, steps=10_000))
    with pytest.raises(CapExceeded):
        check_cap(run)


def test_a_model_that_no_width_brings_below_the_cap_is_refused_in_so_many_words():
    assert widest_below(BabyMobileNetConfig(num_classes=60_000), 100_000) is None
    run = run_of(BabyMobileNetConfig())
    huge = run.model_copy(update={"model": BabyMobileNetConfig(num_classes=60_000)})
    with pytest.raises(CapExceeded, match="no width of this model fits"):
        check_cap(huge)


def test_an_auxiliary_model_may_exceed_the_cap():
    assert check_cap(run_of(BabyMobileNetConfig(width=2), track="auxiliary")) > 100_000


def test_counting_does_not_allocate_the_model():
    # 10^12 parameters would not fit into any memory.
    assert parameters_of(AddNISTCNNConfig(width=3000)) > 10**11
