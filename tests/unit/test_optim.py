"""Learning rates follow their formulas; weight decay acts on filters and matrices alone."""

import copy
import math

import pytest
import torch
from torch import nn

from hpcvision.config import BabyMobileNetConfig, OptimConfig
from hpcvision.config.catalogue import load_job
from hpcvision.config.run import MUON_MODELS
from hpcvision.models import build_model
from hpcvision.training.optim import build_optimizer, hidden_weights, learning_rate


def rates(steps=100, **settings):
    config = OptimConfig(learning_rate=0.5, **settings)
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_step_decay_is_eta0_times_alpha_to_the_k():
    found = rates(schedule="step_decay", decay_factor=0.6, decay_every=10)
    assert found == pytest.approx([0.5 * 0.6**k for k in range(10) for _ in range(10)])


def test_constant_stays_at_the_peak():
    assert set(rates()) == {0.5}


@pytest.mark.parametrize("warmup", [0, 20])
def test_cosine_falls_on_half_a_wave_from_the_peak_to_the_final_fraction_at_the_last_step(warmup):
    found = rates(schedule="cosine", warmup_steps=warmup, final_learning_rate_fraction=0.1)
    last = 99 - warmup
    wave = [0.05 + 0.45 * (1 + math.cos(math.pi * k / last)) / 2 for k in range(last + 1)]
    assert found[warmup:] == pytest.approx(wave)
    assert found[-1] == pytest.approx(0.05)


def test_one_cycle_rises_in_a_line_and_falls_in_a_line():
    found = rates(schedule="one_cycle", warmup_steps=20, final_learning_rate_fraction=0.1)
    assert found[:20] == pytest.approx([0.5 * k / 20 for k in range(1, 21)])
    assert found[20:] == pytest.approx([0.5 - 0.45 * k / 79 for k in range(80)])


@pytest.mark.parametrize("schedule", ["constant", "step_decay", "cosine", "one_cycle"])
def test_every_schedule_warms_up_in_a_line_to_the_peak(schedule):
    found = rates(schedule=schedule, warmup_steps=8, decay_every=50)
    assert found[:8] == pytest.approx([0.5 * k / 8 for k in range(1, 9)])
    assert max(found) == 0.5


@pytest.mark.parametrize("schedule", ["constant", "step_decay", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0, 1, 2, 3, 9])
def test_every_schedule_is_finite_and_not_negative_in_the_shortest_runs(schedule, warmup):
    for steps in (1, 2, 3):
        assert all(0 <= rate <= 0.5 for rate in rates(steps, schedule=schedule, warmup_steps=warmup))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_acts_on_filters_and_matrices_only(optimizer):
    model = build_model(BabyMobileNetConfig(width=0.1))
    made = build_optimizer(OptimConfig(optimizer=optimizer, weight_decay=0.3), model, 0.1)
    decay = {id(parameter): group["weight_decay"] for group in made.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        is_filter = name.endswith("weight") and parameter.ndim > 1
        assert decay[id(parameter)] == (0.3 if is_filter else 0.0), name


def test_every_parameter_is_optimised_exactly_once():
    model = build_model(BabyMobileNetConfig(width=0.1))
    held = [p for group in build_optimizer(OptimConfig(), model, 0.1).param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def trained(model, optimizer, steps=12):
    stream = torch.Generator().manual_seed(0)
    for _ in range(steps):
        loss = model(torch.randn(8, 4, generator=stream)).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters())


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 2)).double()


def test_adamw_without_weight_decay_is_adam():
    ours, reference = small_model().float(), small_model().float()
    config = OptimConfig(optimizer="adamw", learning_rate=0.01, betas=(0.8, 0.95))
    made = build_optimizer(config, ours, torch.tensor(0.01))
    adam = torch.optim.Adam(reference.parameters(), lr=0.01, betas=(0.8, 0.95))
    torch.testing.assert_close(trained(ours, made), trained(reference, adam), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_follows_the_momentum_rule_with_decay_on_the_weights(nesterov):
    model, rate, momentum, decay = small_model().float(), 0.01, 0.9, 0.1
    config = OptimConfig(optimizer="sgd", learning_rate=rate, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    reference = copy.deepcopy(model)
    found = trained(model, build_optimizer(config, model, torch.tensor(rate)))
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    stream = torch.Generator().manual_seed(0)
    for _ in range(12):
        gradients = torch.autograd.grad(
            reference(torch.randn(8, 4, generator=stream)).square().sum(), list(reference.parameters())
        )
        with torch.no_grad():
            for p, v, g in zip(reference.parameters(), velocity, gradients, strict=True):
                g = g + decay * p * (p.ndim >= 2)
                v.mul_(momentum).add_(g)
                p -= rate * (g + momentum * v if nesterov else v)
    torch.testing.assert_close(found, list(reference.parameters()), rtol=1e-5, atol=1e-6)


def test_sgd_without_momentum_is_accepted_with_nesterov_left_on():
    made = build_optimizer(OptimConfig(optimizer="sgd", momentum=0), small_model(), 0.1)
    assert all(group["nesterov"] is False for group in made.param_groups)


def test_a_new_learning_rate_reaches_every_parameter():
    model, rate = small_model().float(), torch.tensor(0.1)
    made = build_optimizer(OptimConfig(optimizer="sgd", momentum=0), model, rate)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    rate.fill_(0.125)
    made.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.125)


def small_network():
    """First, filters per channel, hidden 3x3, hidden 1x1, hidden linear, last."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.Linear(12, 5),
    )


def gradients(model, step):
    """Any; the same for the same step and shapes."""
    stream = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=stream))


MUON = OptimConfig(
    optimizer="muon", learning_rate=0.1, weight_decay=0.01, muon_learning_rate=0.03, muon_momentum=0.8,
    muon_weight_decay=0.2,
)  # fmt: skip


# torch's Muon computes in bfloat16, whose sums depend on the order of a matrix's columns.
@pytest.mark.parametrize("memory_format, bound", [(torch.contiguous_format, 0), (torch.channels_last, 2e-3)])
def test_muon_is_torchs_on_the_hidden_weights_as_matrices_and_sgd_on_all_else(memory_format, bound):
    ours = small_network().to(memory_format=memory_format)
    reference = {name: values.detach().clone() for name, values in small_network().named_parameters()}
    hidden = {name: nn.Parameter(reference[name].reshape(len(reference[name]), -1)) for name in HIDDEN}
    rest = {name: nn.Parameter(values) for name, values in reference.items() if name not in HIDDEN}
    rate = torch.tensor(0.1)
    made = build_optimizer(MUON, ours, rate)
    muon = torch.optim.Muon(hidden.values(), weight_decay=0.2, momentum=0.8)
    decayed = [p for p in rest.values() if p.ndim > 1]
    sgd = torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": 0.01},
            {"params": [p for p in rest.values() if p.ndim < 2], "weight_decay": 0},
        ],
        momentum=0.9,
        nesterov=True,
    )
    for step in range(4):
        rate.fill_(0.1 / (step + 1))
        gradients(ours, step)
        for name, parameter in ours.named_parameters():
            (hidden if name in HIDDEN else rest)[name].grad = (
                parameter.grad.reshape(len(parameter), -1) if name in HIDDEN else parameter.grad.clone()
            )
        made.step()
        for group in muon.param_groups:
            group["lr"] = 0.3 * float(rate)
        for group in sgd.param_groups:
            group["lr"] = float(rate)
        muon.step()
        sgd.step()
    before = dict(small_network().named_parameters())
    for name, parameter in ours.named_parameters():
        expected = (hidden if name in HIDDEN else rest)[name].view(parameter.shape)
        torch.testing.assert_close(parameter, expected, rtol=0, atol=bound if name in HIDDEN else 1e-6)
        assert (parameter - before[name]).abs().max() > 0.01, "it has moved far more"


HIDDEN = ("2.weight", "4.weight", "6.weight")


def test_muon_goes_on_from_its_stored_state_as_if_it_had_not_stopped():
    def run(model, optimizer, steps):
        for step in steps:
            gradients(model, step)
            optimizer.step()

    whole = small_network()
    run(whole, build_optimizer(MUON, whole, 0.1), range(6))
    model = small_network()
    first = build_optimizer(MUON, model, 0.1)
    run(model, first, range(3))
    stored = copy.deepcopy(first.state_dict()["state"])
    rest = build_optimizer(MUON, model, 0.1)
    rest.load_state_dict(rest.state_dict() | {"state": stored})
    run(model, rest, range(3, 6))
    for expected, found in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)


HIDDEN_OF_JOBS = {
    "addnist_cnn": {"features.3.weight", "features.6.weight", "features.9.weight", "head.1.weight"},
    "cifar100_baby_mobilenet": {"stem.4.weight", *(f"blocks.{block}.0.1.weight" for block in range(3))},
    "cifar100_compact": {"stem.4.weight", "stem.8.weight", *(f"blocks.{block}.mix.weight" for block in range(7))},
}


@pytest.mark.parametrize("job", HIDDEN_OF_JOBS)
def test_muon_gets_all_weights_that_mix_channels_but_those_of_the_first_and_the_last_layer(job):
    model = build_model(load_job(job).model)
    ours = set(map(id, hidden_weights(model)))
    assert {name for name, weight in model.named_parameters() if id(weight) in ours} == HIDDEN_OF_JOBS[job]


def test_every_model_that_muon_is_for_is_looked_at_above():
    assert {load_job(job).model.kind for job in HIDDEN_OF_JOBS} == set(MUON_MODELS)


@pytest.mark.parametrize("kind", ["sgd", "muon"])
def test_a_first_step_that_fp16_skips_leaves_nothing_behind(kind, monkeypatch):
    """Torch's fused kernel would go on with memory that nobody has written: here it is filled with NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        models = skipped, expected = small_network(), small_network()
        for model in models:
            optimizer = build_optimizer(OptimConfig(optimizer=kind, momentum=0.9), model, torch.tensor(0.1))
            for step in (0, 1):
                scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
                scaler.scale(torch.ones(()))  # it makes its own tensors at the first use
                gradients(model, step)
                if step == 0:
                    for parameter in model.parameters():
                        parameter.grad.fill_(torch.inf)
                if step == 1 or model is skipped:
                    scaler.step(optimizer)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(skipped.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_with_muon_every_parameter_is_cleared_and_optimised_exactly_once():
    model = build_model(BabyMobileNetConfig(width=0.1))
    made = build_optimizer(OptimConfig(optimizer="muon"), model, 0.1)
    held = [p for group in made.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    gradients(model, 0)
    made.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())
