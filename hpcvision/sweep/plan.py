"""Which trials a sweep is: its file, the overrides of every trial, and the cap checked before anything starts."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcvision.config import RunConfig, apply
from hpcvision.config.catalogue import find, load_file, load_job
from hpcvision.errors import CapExceeded, UserError
from hpcvision.models.counting import check_cap

DRAWS_PER_TRIAL = 1000  # after so many over-cap draws in a row the space is called empty


@dataclass(frozen=True)
class Plan:
    """A sweep, resolved: every trial's overrides, all of them under the cap."""

    name: str
    base: RunConfig
    objective: str
    trials: list[tuple[str, dict[str, Any]]]
    """(label, overrides) of every trial."""
    removed: int
    """Draws that the cap removed."""


def make_plan(wanted: str, overrides: Mapping[str, Any], *, trials: int | None, seed: int = 0) -> Plan:
    """The plan of the sweep named `wanted`, the same for the same seed; raises UserError for a bad sweep file.

    overrides go into every trial, before what the sweep turns.
    """
    path = find("sweeps", wanted)
    module = load_file(path)
    base = apply(load_job(module.BASE), dict(getattr(module, "FIXED", {})) | dict(overrides))
    if base.data.train_on != "train":
        raise UserError("a sweep selects on the validation images, so data.train_on must be train")
    objective = getattr(module, "OBJECTIVE", "loss")
    if hasattr(module, "VARIANTS"):
        drawn = [(label, dict(turned)) for label, turned in module.VARIANTS.items()][: trials or None]
        for _, turned in drawn:
            check_cap(apply(base, turned))
        return Plan(path.stem, base, objective, drawn, removed=0)
    if not hasattr(module, "SPACE"):
        raise UserError(f"{path} has neither SPACE nor VARIANTS; see sweeps/demo.py for an example")
    # The random state, not torch's: Ray's distributions draw from numpy.
    random = np.random.RandomState(seed)
    drawn, removed = [], 0
    for _ in range(trials or module.TRIALS):
        for turned in grids(module.SPACE):
            feasible, over = draw_under_cap(base, turned, random)
            removed += over
            drawn.append((f"trial {len(drawn) + 1}", feasible))
    return Plan(path.stem, base, objective, drawn, removed)


def grids(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The space once for every combination of its `tune.grid_search` values."""
    gridded = {key: value["grid_search"] for key, value in space.items() if isinstance(value, dict)}
    combinations = itertools.product(*gridded.values())
    return [dict(space) | dict(zip(gridded, combination, strict=True)) for combination in combinations]


def draw_under_cap(
    base: RunConfig, space: Mapping[str, Any], random: np.random.RandomState
) -> tuple[dict[str, Any], int]:
    """One set of overrides below the cap, and how many over it were thrown away before."""
    for removed in range(DRAWS_PER_TRIAL):
        turned = {}
        for key, domain in space.items():
            value = domain.sample(random_state=random) if hasattr(domain, "sample") else domain
            turned[key] = value.item() if isinstance(value, np.generic) else value
        try:
            check_cap(apply(base, turned))
        except CapExceeded:
            continue
        return turned, removed
    raise UserError(f"{DRAWS_PER_TRIAL} draws in a row were over the cap; make SPACE smaller, for example model.width")
