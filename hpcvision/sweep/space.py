"""The cap surface: what of a sweep's space is below the caps, found before anything is drawn."""

import contextlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.search.sample import Categorical, Domain, Float, Function, Integer, LogUniform, Normal, Quantized

from hpcvision.config import CAPS, RunConfig, apply
from hpcvision.errors import CapExceeded, UserError
from hpcvision.models.counting import filling, largest_below, parameters_of
from hpcvision.sweep.words import FillCap

MOST_COMBINATIONS = 10_000  # all are counted; a model takes some milliseconds
MOST_VALUES = 1_000  # of a distribution over whole numbers, which is listed

Settings = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One combination of the settings that decide what a trial costs, below the caps."""

    settings: Settings
    share: float
    """How likely the space as written is to be here and below the caps."""
    limits: tuple[float, float] | None
    """Smallest and largest value of the continuous setting that are below the cap; None where there is no such."""


@dataclass(frozen=True)
class Over:
    """One combination that the caps remove."""

    settings: Settings
    smallest: int
    """Its parameters at the least, or its steps."""
    cap: str
    """Which cap, in words."""


@dataclass(frozen=True)
class Surface:
    """The space below the caps: cells, at most one continuous setting within each, and what costs nothing."""

    space: dict[str, Any]
    """As written."""
    cells: list[Cell]
    continuous: str | None
    """The continuous setting that changes the number of parameters."""
    free: dict[str, Any]
    """Distributions and constants that change neither the number of parameters nor that of steps."""
    combinations: int
    """Number of cells in the space as written."""

    @property
    def removed(self) -> int:
        """Combinations that the caps removed."""
        return self.combinations - len(self.cells)

    @property
    def share(self) -> float:
        """How much of the space as written is below the caps, 0 to 1."""
        return math.fsum(cell.share for cell in self.cells)

    def draw(self, random: np.random.RandomState) -> Settings:
        """One point below the caps; the points are distributed as in the space as written, where that is below them."""
        shares = np.array([cell.share for cell in self.cells])
        number = int(random.choice(len(self.cells), p=shares / shares.sum()))
        position = random.uniform()
        free = {key: sampled(domain, random) for key, domain in self.free.items()}
        return self.at(number, position, free)

    def at(self, number: int, position: float, free: Mapping[str, Any]) -> Settings:
        """The point in a cell, at a position from 0 to 1 between its limits, with these free settings."""
        cell = self.cells[number]
        turned = cell.settings | dict(free)
        if self.continuous and cell.limits:
            turned[self.continuous] = quantile(self.space[self.continuous], *cell.limits, position)
        return {key: turned[key] for key in self.space}


def restrict(base: RunConfig, space: Mapping[str, Any]) -> Surface:
    """The part of `space` that is below the caps of `base`.

    What a trial costs is decided by settings of the model and by `train.steps`. All their combinations are looked at; a
    continuous one is bounded in each combination by bisection, as a model has no fewer parameters when it is wider.
    Raises CapExceeded for a space without a point below the caps, UserError for values that a run cannot have.
    """
    filled = [key for key, domain in space.items() if isinstance(domain, FillCap)]
    for key in filled:
        check_filled(base, key)
    listed = {
        key: values
        for key, domain in space.items()
        if (key.startswith("model.") or key in ("train.steps", "task.kind"))
        and key not in filled
        and (values := values_of(key, domain)) is not None
    }
    combinations = math.prod(len(values) for values in listed.values())
    if combinations > MOST_COMBINATIONS:
        raise UserError(
            f"SPACE has {combinations:,} combinations of {', '.join(listed)}; list fewer values, at most "
            f"{MOST_COMBINATIONS:,} combinations can be counted"
        )
    continuous = the_continuous(base, space, listed, filled)
    cells: list[Cell] = []
    over: list[Over] = []
    for chosen in itertools.product(*listed.values()):
        settings = {key: value for key, (value, _) in zip(listed, chosen, strict=True)}
        chance = math.prod(chance for _, chance in chosen)
        found = cell_of(base, space, settings, chance, continuous, filled)
        cells.append(found) if isinstance(found, Cell) else over.append(found)
    if not cells:
        nearest = min(over, key=lambda one: one.smallest)
        what = ", ".join(f"{key}={value}" for key, value in nearest.settings.items()) or "the job as it is"
        raise CapExceeded(f"no point of SPACE is {nearest.cap}; the smallest has {nearest.smallest:,} ({what})")
    free = {key: domain for key, domain in space.items() if key not in listed and key not in (continuous, *filled)}
    check_values(base, cells[0].settings, free)
    return Surface(dict(space), cells, continuous, free, combinations)


def check_filled(base: RunConfig, key: str) -> None:
    """Raise UserError for a key that the cap cannot be filled with."""
    if base.track == "auxiliary":
        raise UserError(f"fill_cap({key!r}) has no meaning for track=auxiliary, which has no cap")
    if not key.startswith("model.") or not isinstance(getattr(base.model, key.removeprefix("model."), None), float):
        raise UserError(f"fill_cap({key!r}): a cap is filled with a width, for example fill_cap('model.width')")


def the_continuous(
    base: RunConfig, space: Mapping[str, Any], listed: Mapping[str, list[tuple[Any, float]]], filled: list[str]
) -> str | None:
    """The one continuous setting that changes the number of parameters, if there is one."""
    first = {key: values[0][0] for key, values in listed.items()}
    found = []
    for key, domain in space.items():
        if key.startswith("model.") and key not in listed and key not in filled:
            low, high = bounds_of(key, domain)
            counts = {parameters_of(apply(base, first | {key: value}).model) for value in (low, high)}
            if len(counts) > 1:
                found.append(key)
    if len(found) + len(filled) > 1:
        raise UserError(
            f"{' and '.join(filled + found)} both decide the number of parameters; one of them may be continuous or "
            "fill the cap, list the values of the others with tune.choice"
        )
    return found[0] if found else None


def cell_of(
    base: RunConfig,
    space: Mapping[str, Any],
    settings: Settings,
    chance: float,
    continuous: str | None,
    filled: list[str],
) -> Cell | Over:
    """What of one combination is below the caps."""
    cap = CAPS[base.task.kind]
    low, high = bounds_of(continuous, space[continuous]) if continuous else (0.0, 0.0)
    try:
        config = apply(base, settings | ({continuous: low} if continuous else {}))
    except CapExceeded:
        return Over(settings, settings.get("train.steps", base.train.steps), f"within the cap of {cap.steps:,} steps")
    if base.track == "auxiliary":
        return Cell(settings, chance, (low, high) if continuous else None)
    words = f"below the cap of {cap.parameters:,} parameters"
    if filled:
        field = filled[0].removeprefix("model.")
        value = filling(config.model, cap.parameters, field)
        if value is None:
            return Over(settings, parameters_of(config.model.model_copy(update={field: 1e-9})), words)
        return Cell(settings | {filled[0]: value}, chance, None)
    if parameters_of(config.model) >= cap.parameters:
        shown = settings | ({continuous: low} if continuous else {})
        return Over(shown, parameters_of(config.model), words)
    if not continuous:
        return Cell(settings, chance, None)
    largest = largest_below(config.model, cap.parameters, continuous.removeprefix("model."))
    assert largest is not None, "the model is below the cap at the lower bound"
    top = min(high, max(low, largest))
    domain = space[continuous]
    part = 1.0 if top == high else position_of(domain, low, high, top)
    return Cell(settings, chance * part, (low, top))


def values_of(key: str, domain: Any) -> list[tuple[Any, float]] | None:
    """The values with their chances, or None for a continuous distribution."""
    if isinstance(domain, Float) and not isinstance(domain.get_sampler(), Quantized):
        return None
    if isinstance(domain, Function) or (isinstance(domain, Float) and not bounded(domain)):
        raise UserError(f"{key} decides what a trial costs, and its distribution has no bounds that could be checked")
    if isinstance(domain, Categorical):
        return [(value, 1 / len(domain.categories)) for value in domain.categories]
    if not isinstance(domain, Domain):
        return [(domain, 1.0)]
    sampler = domain.get_sampler()
    step = sampler.q if isinstance(sampler, Quantized) else 1
    inner = sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
    first, last = math.ceil(domain.lower / step - 1e-9), math.floor(domain.upper / step + 1e-9)
    if isinstance(domain, Integer):
        last -= step == 1  # the upper end of randint is left out
        edges = np.arange(first, last + 2, dtype=float)
    else:
        edges = np.clip(np.arange(first, last + 2) - 0.5, first, last)
    if not 0 < len(edges) - 1 <= MOST_VALUES:
        raise UserError(f"{key} has {len(edges) - 1:,} values; 1 to {MOST_VALUES:,} can be counted")
    if isinstance(inner, LogUniform):
        edges = np.log(edges)
    chances = np.diff(edges) / (edges[-1] - edges[0])
    values = [plain(domain.cast(number * step)) for number in range(first, last + 1)]
    return list(zip(values, chances.tolist(), strict=True))


def bounded(domain: Float) -> bool:
    """True unless it can give any number."""
    return math.isfinite(domain.lower) and math.isfinite(domain.upper)


def bounds_of(key: str, domain: Any) -> tuple[float, float]:
    """The least and the largest value of a continuous distribution."""
    if not isinstance(domain, Float) or not bounded(domain) or isinstance(domain.get_sampler(), Normal):
        raise UserError(f"{key} decides what a trial costs, and its distribution has no bounds that could be checked")
    return domain.lower, domain.upper


def quantile(domain: Float, low: float, high: float, position: float) -> float:
    """The value at `position`, 0 to 1, of the distribution cut to low .. high."""
    if isinstance(domain.get_sampler(), LogUniform):
        return min(high, low * math.exp(position * math.log(high / low)))
    return min(high, low + (high - low) * position)


def position_of(domain: Float, low: float, high: float, value: float) -> float:
    """What `quantile` undoes."""
    if isinstance(domain.get_sampler(), LogUniform):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def check_values(base: RunConfig, settings: Settings, free: Mapping[str, Any]) -> None:
    """Raise UserError when one of the free settings can get a value that a run cannot have."""
    for key, domain in free.items():
        if isinstance(domain, Categorical):
            values = domain.categories
        elif isinstance(domain, Float) and bounded(domain):
            values = [domain.lower, domain.upper]
            with contextlib.suppress(UserError):  # the end itself is never drawn, and may be what is just not allowed
                apply(base, settings | {key: math.nextafter(domain.upper, domain.lower)})
                values.pop()
        elif isinstance(domain, Integer):
            values = [domain.lower, domain.upper - 1]
        else:
            values = [sampled(domain, np.random.RandomState(0))]
        for value in values:
            apply(base, settings | {key: value})


def sampled(domain: Any, random: np.random.RandomState) -> Any:
    """A value of a distribution, or the constant."""
    return plain(domain.sample(random_state=random)) if isinstance(domain, Domain) else domain


def plain(value: Any) -> Any:
    """A number of Python for one of numpy."""
    return value.item() if isinstance(value, np.generic) else value
