"""The cap surface of a sweep: what is drawn is below the caps, and distributed as the space is there."""

from typing import Any

import numpy as np
import pytest
from ray import tune

from hpcvision.config import CAPS, RunConfig, apply, run
from hpcvision.config.catalogue import load_job
from hpcvision.errors import UserError
from hpcvision.models.counting import filling, parameters_of
from hpcvision.sweep import fill_cap
from hpcvision.sweep.space import Surface, restrict

CAP = CAPS["classify"].parameters


@pytest.fixture(scope="module")
def base() -> RunConfig:
    """Baby MobileNet as the paper has it."""
    return load_job("cifar100_baby_mobilenet")


def draws(surface: Surface, count: int) -> list[dict[str, Any]]:
    """So many points."""
    random = np.random.RandomState(0)
    return [surface.draw(random) for _ in range(count)]


def rejected(base: RunConfig, space: dict[str, Any], count: int) -> tuple[list[dict[str, Any]], float]:
    """The reference: draw from Ray's own distributions, throw away what is over the cap; and the share that is kept."""
    random, kept, drawn = np.random.RandomState(1), [], 0
    while len(kept) < count:
        drawn += 1
        point = {key: domain.sample(random_state=random) for key, domain in space.items()}
        point = {key: value.item() if isinstance(value, np.generic) else value for key, value in point.items()}
        if parameters_of(apply(base, point).model) < CAP:
            kept.append(point)
    return kept, count / drawn


SPACES = {
    "listed widths": {"model.width": tune.choice([0.2, 0.6, 1.0, 1.4, 3.0])},
    "a uniform width": {"model.width": tune.uniform(0.1, 2.0)},
    "a width on a logarithmic scale": {"model.width": tune.loguniform(0.1, 3.0)},
    "a width in steps": {"model.width": tune.quniform(0.5, 2.0, 0.1)},
    "a width in steps on a logarithmic scale": {"model.width": tune.qloguniform(0.25, 2.0, 0.25)},
    "two settings that both decide": {
        "model.num_classes": tune.choice([100, 400, 900]),
        "model.width": tune.uniform(0.1, 1.5),
    },
    "whole numbers": {"model.num_classes": tune.randint(100, 140)},
    "whole numbers in steps": {"model.num_classes": tune.qrandint(100, 140, 10)},
    "whole numbers on a logarithmic scale": {"model.num_classes": tune.lograndint(100, 160)},
}


@pytest.fixture
def any_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the number of classes be turned, as a second setting that decides the number of parameters."""
    monkeypatch.setitem(run.SOURCE_SHAPES, "cifar100", None)


@pytest.mark.usefixtures("any_classes")
@pytest.mark.parametrize("name", SPACES)
def test_points_are_distributed_as_those_that_are_left_when_all_over_the_cap_are_thrown_away(
    name: str, base: RunConfig
) -> None:
    space = SPACES[name]
    surface = restrict(base, space)
    count = 600
    ours = draws(surface, count)
    reference, share = rejected(base, space, count)
    for key in space:
        mine, theirs = (np.sort([point[key] for point in points]) for points in (ours, reference))
        grid = np.union1d(mine, theirs)
        distance = np.abs(
            np.searchsorted(mine, grid, side="right") / count - np.searchsorted(theirs, grid, side="right") / count
        ).max()
        # Kolmogorov and Smirnov: exceeded by one of 10,000 pairs of samples of one distribution.
        assert distance < 2.23 * np.sqrt(2 / count)
    assert surface.share == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / count) + 1e-9)


@pytest.mark.usefixtures("any_classes")
@pytest.mark.parametrize("name", SPACES)
def test_no_point_over_the_cap_is_ever_drawn(name: str, base: RunConfig) -> None:
    for point in draws(restrict(base, SPACES[name]), 300):
        assert parameters_of(apply(base, point).model) < CAP


@pytest.mark.parametrize("job", ["cifar100_baby_mobilenet", "addnist_cnn", "cifar100_ddpm_residual", "cifar100_edm"])
def test_a_filled_cap_has_no_wider_model_with_more_parameters_below_it(job: str) -> None:
    config = load_job(job)
    cap = CAPS[config.task.kind].parameters
    surface = restrict(config, fill_cap("model.width") | {"optim.learning_rate": tune.loguniform(1e-4, 1e-2)})
    point = draws(surface, 1)[0]
    model = apply(config, point).model
    count = parameters_of(model)
    assert count < cap
    wider = (parameters_of(model.model_copy(update={"width": model.width + n / 1000})) for n in range(1, 1000))
    assert next(other for other in wider if other != count) >= cap


def test_a_filled_cap_follows_the_other_settings() -> None:
    edm = load_job("cifar100_edm")
    surface = restrict(edm, fill_cap("model.width") | {"model.passes": tune.choice([1, 2, 3])})
    widths = {point["model.passes"]: point["model.width"] for point in draws(surface, 40)}
    assert len(set(widths.values())) > 1
    for passes, width in widths.items():
        model = edm.model.model_copy(update={"passes": passes})
        assert width == filling(model, CAPS["diffuse"].parameters)


def test_a_space_without_a_point_below_the_cap_says_which_cap_and_the_smallest_count(base: RunConfig) -> None:
    smallest = parameters_of(apply(base, {"model.width": 2.0}).model)
    with pytest.raises(UserError, match=rf"below the cap of 100,000 parameters; the smallest has {smallest:,} .*=2"):
        restrict(base, {"model.width": tune.choice([3.0, 2.0])})
    with pytest.raises(UserError, match=rf"the smallest has {smallest:,} \(model.width=2"):
        restrict(base, {"model.width": tune.uniform(2.0, 3.0)})
    with pytest.raises(UserError, match="within the cap of 10,000 steps; the smallest has 20,000"):
        restrict(base, {"train.steps": tune.choice([20_000, 30_000])})


def test_steps_over_the_cap_are_removed_like_parameters(base: RunConfig) -> None:
    surface = restrict(base, {"train.steps": tune.choice([5_000, 10_000, 20_000])})
    assert (surface.removed, surface.combinations) == (1, 3)
    assert {point["train.steps"] for point in draws(surface, 40)} == {5_000, 10_000}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"optim.learning_rat": tune.uniform(0, 1)}, "unknown key 'optim.learning_rat'; did you mean"),
        ({"model.widht": tune.uniform(0.1, 1)}, "unknown key 'model.widht'; did you mean 'model.width'"),
        ({"model.widht": tune.choice([0.1, 1])}, "unknown key 'model.widht'"),
        ({"ema.beta": tune.uniform(0.9, 1.5)}, "ema.beta=1.5"),
        ({"ema.beta": tune.choice([0.9, 1.5])}, "ema.beta=1.5"),
        ({"model.width": tune.randn(1, 1)}, "no bounds"),
        ({"model.width": tune.sample_from(lambda: 1.0)}, "no bounds"),
        (fill_cap("model.dropouts"), "filled with a width"),
        (fill_cap("optim.learning_rate"), "filled with a width"),
        ({"model.num_classes": tune.randint(2, 2_000_000)}, "can be counted"),
    ],
)
def test_a_bad_space_is_one_line(space: dict[str, Any], words: str, base: RunConfig) -> None:
    with pytest.raises(UserError, match=words) as caught:
        restrict(base, space)
    assert "\n" not in str(caught.value)


def test_a_distribution_that_ends_where_a_setting_may_not_be_is_taken(base: RunConfig) -> None:
    restrict(base, {"ema.beta": tune.uniform(0.9, 1.0)})  # the end itself is never drawn
