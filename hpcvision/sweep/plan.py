"""Which trials a sweep is: its file, and the overrides of every trial, all of them below the caps."""

import difflib
import itertools
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np

from hpcvision.config import RunConfig, apply, unparse
from hpcvision.config.catalogue import find, load_file, load_job
from hpcvision.errors import CapExceeded, UserError
from hpcvision.models.counting import check_cap
from hpcvision.sweep.space import Surface, restrict
from hpcvision.sweep.words import Asha, FillCap

DRAWS_PER_TRIAL = 1000  # of points that are trials already, before the space is called exhausted

OBJECTIVES = {"classify": ("accuracy", "loss"), "diffuse": ("frechet", "loss")}

WORDS = ("BASE", "FIXED", "SPACE", "VARIANTS", "OBJECTIVE", "TRIALS", "TOP", "SEEDS", "SEARCH", "SCHEDULER")

Search = Literal["variants", "grid", "random", "optuna"]


@dataclass(frozen=True)
class Planned:
    """One trial before it is trained."""

    label: str
    overrides: dict[str, Any]
    """What differs from the base."""
    point: dict[str, Any] = field(default_factory=dict)
    """Where an adaptive search put it, in its own coordinates."""


@dataclass
class Plan:
    """A sweep, resolved."""

    name: str
    base: RunConfig
    objective: str
    search: Search
    trials: list[Planned]
    """All of them, but for an adaptive search, which adds them as it goes."""
    wanted: int
    """Number of trials when all are drawn."""
    surfaces: list[Surface]
    """The space below the caps, one for every combination of `tune.grid_search` values."""
    scheduler: Asha | None
    top: int
    """So many of the best are trained with further seeds."""
    seeds: int
    """Number of seeds that these have in all."""
    given: str = ""
    """What follows the sweep's name on a command line that makes this plan."""
    asked: int = 0
    """Trials of a random search that were asked for; there are fewer where the space has fewer points."""
    combinations: int = 0
    """Combinations of settings that decide what a trial costs."""
    removed: int = 0
    """Those of them that the caps removed."""
    share: float = 1.0
    """How much of the space as written is below the caps."""

    @property
    def larger_is_better(self) -> bool:
        """True for a score, False for a loss or a distance."""
        return self.objective == "accuracy"

    @property
    def mode(self) -> str:
        """What Ray calls it."""
        return "max" if self.larger_is_better else "min"

    def config(self, index: int) -> RunConfig:
        """The configuration of a trial."""
        return apply(self.base, self.trials[index].overrides)

    def rungs(self, config: RunConfig) -> list[int]:
        """Steps at which a trial is compared with the others."""
        return self.scheduler.rungs(config.train.steps) if self.scheduler else []

    def identity(self) -> dict[str, Any]:
        """What makes it this sweep, as plain values.

        More trials of the same space are the same sweep, and so are more variants, where none is compared with others
        before its end.
        """
        listed = [planned.overrides for planned in self.trials] if self.scheduler else []
        return {
            "sweep": self.name,
            "base": self.base.fingerprint,
            "objective": self.objective,
            "search": self.search,
            "scheduler": None if self.scheduler is None else vars(self.scheduler),
            "space": [{key: in_words(domain) for key, domain in surface.space.items()} for surface in self.surfaces]
            or listed,
        }


def make_plan(wanted: str, overrides: Mapping[str, Any], *, trials: int | None = None, seed: int = 0) -> Plan:
    """The plan of the sweep named `wanted`, the same for the same seed; raises UserError for a bad sweep file.

    overrides go into every trial, before what the sweep turns. The first trials of a longer sweep are those of a
    shorter one.
    """
    path = find("sweeps", wanted)
    module = load_file(path)
    check_words(module, str(path))
    base = apply(load_job(module.BASE), dict(getattr(module, "FIXED", {})) | dict(overrides))
    if base.data.train_on != "train":
        raise UserError("a sweep selects on the validation images, so data.train_on must be train")
    objective = getattr(module, "OBJECTIVE", "loss")
    choices = OBJECTIVES[base.task.kind]
    if objective not in choices:
        raise UserError(f"OBJECTIVE={objective!r} of {path} is never reported; choose one of {', '.join(choices)}")
    count = trials if trials is not None else getattr(module, "TRIALS", 1)
    if count < 1:
        raise UserError(f"{path} asks for TRIALS={count}; give at least 1")
    given = shlex.join([*unparse(overrides), *([] if trials is None else ["--trials", str(trials)])])
    scheduler = getattr(module, "SCHEDULER", None)
    if scheduler and not scheduler.rungs(base.train.steps):
        raise UserError(f"SCHEDULER of {path}: first_rung={scheduler.first_rung} is no step before the last one")
    if hasattr(module, "VARIANTS"):
        drawn = [Planned(label, dict(turned)) for label, turned in module.VARIANTS.items()][:trials]
        plan = Plan(path.stem, base, objective, "variants", drawn, len(drawn), [], scheduler, 0, 1, given)
        known: dict[str, str] = {}
        for index, planned in enumerate(drawn):
            config = plan.config(index)
            check_cap(config)
            if (twin := known.setdefault(config.fingerprint, planned.label)) != planned.label:
                raise UserError(f"VARIANTS of {path}: {twin!r} and {planned.label!r} are the same run; leave out one")
        return plan
    for key in overrides:
        if key in module.SPACE:
            raise UserError(f"{key} is turned by SPACE of {path}, so to give it changes nothing; leave it out")
    top, seeds = getattr(module, "TOP", 1), getattr(module, "SEEDS", 3)
    if "seed" in module.SPACE and seeds > 1:
        raise UserError(f"SPACE of {path} turns seed, and SEEDS={seeds} gives the best further ones; write SEEDS = 1")
    plan = Plan(path.stem, base, objective, "random", [], 0, [], scheduler, top, seeds, given)
    restrict_all(plan, module.SPACE)
    if getattr(module, "SEARCH", "random") == "optuna":
        check_optuna(plan, str(path))
        plan.search, plan.wanted = "optuna", count
        return plan
    drawn_at_all = any(hasattr(domain, "sample") for domain in module.SPACE.values())
    plan.search = "random" if drawn_at_all else "grid"
    draw_all(plan, count if drawn_at_all else 1, np.random.RandomState(seed))
    return plan


def check_objective(plan: Plan) -> None:
    """Raise UserError for a distance without features for the images."""
    source = plan.base.data.source
    if plan.objective == "frechet" and source != "cifar100":
        raise UserError(
            f"OBJECTIVE='frechet' of {plan.name} is measured with cifar100_features, on data.source=cifar100 only; "
            f"{plan.base.run_name} has {source}, choose loss"
        )


def check_words(module: ModuleType, path: str) -> None:
    """Raise UserError for a sweep file that lacks something, or has it of the wrong kind."""
    if not hasattr(module, "BASE"):
        raise UserError(f"{path} has no BASE, the name of a job; see sweeps/demo.py for an example")
    if not hasattr(module, "SPACE") and not hasattr(module, "VARIANTS"):
        raise UserError(f"{path} has neither SPACE nor VARIANTS; see sweeps/demo.py for an example")
    for name in vars(module):
        near = difflib.get_close_matches(name, WORDS, n=1, cutoff=0.8)
        if near and name not in WORDS:
            raise UserError(f"{name} of {path} is no word of a sweep; did you mean {near[0]}?")
    for name in ("TRIALS", "TOP", "SEEDS"):
        value = getattr(module, name, 1)
        if type(value) is not int or value < 0:
            raise UserError(f"{name}={value!r} of {path} must be a whole number")
        if hasattr(module, "VARIANTS") and hasattr(module, name):
            raise UserError(
                f"{name} of {path} is for a SPACE: VARIANTS are trained once each, so write each seed as one"
            )
    for name in ("FIXED", "SPACE", "VARIANTS"):
        value = getattr(module, name, {})
        if not isinstance(value, dict) or (name == "VARIANTS" and any(type(one) is not dict for one in value.values())):
            raise UserError(f"{name} of {path} is no dictionary of keys and values; see sweeps/demo.py for an example")
    for key, domain in getattr(module, "SPACE", {}).items():
        if type(domain).__name__ == "Function":
            raise UserError(f"SPACE of {path} has tune.sample_from for {key}, which cannot be resumed; use tune.choice")
    search = getattr(module, "SEARCH", "random")
    if search not in ("random", "optuna"):
        raise UserError(f"SEARCH={search!r} of {path} does not exist; choose random (or a grid in SPACE) or optuna")
    scheduler = getattr(module, "SCHEDULER", None)
    if scheduler is not None and not isinstance(scheduler, Asha):
        raise UserError(f"SCHEDULER of {path} is {scheduler!r}; write for example asha(first_rung=500)")


def restrict_all(plan: Plan, space: Mapping[str, Any]) -> None:
    """Put the space below the caps into the plan; raises UserError when there is nothing of it."""
    nothing: UserError | None = None
    weights = []
    for listed in grids(space):
        try:
            surface = restrict(plan.base, listed)
        except CapExceeded as error:
            nothing = error
            plan.combinations += 1
            plan.removed += 1
            weights.append(0.0)
            continue
        plan.surfaces.append(surface)
        plan.combinations += surface.combinations
        plan.removed += surface.removed
        weights.append(surface.share)
    if nothing and not plan.surfaces:
        raise nothing
    plan.share = sum(weights) / len(weights)


def draw_all(plan: Plan, count: int, random: np.random.RandomState) -> None:
    """Draw `count` trials for every combination of grid values, none of them twice."""
    seen: set[str] = set()
    for _ in range(count):
        for surface in plan.surfaces:
            for _ in range(DRAWS_PER_TRIAL):
                turned = surface.draw(random)
                fingerprint = apply(plan.base, turned).fingerprint
                if fingerprint not in seen:
                    seen.add(fingerprint)
                    plan.trials.append(Planned(f"trial {len(plan.trials) + 1}", turned))
                    break
    plan.wanted, plan.asked = len(plan.trials), count * len(plan.surfaces)


def grids(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The space once for every combination of its `tune.grid_search` values."""
    gridded = {key: value["grid_search"] for key, value in space.items() if isinstance(value, dict)}
    combinations = itertools.product(*gridded.values())
    return [dict(space) | dict(zip(gridded, combination, strict=True)) for combination in combinations]


def check_optuna(plan: Plan, path: str) -> None:
    """Raise UserError where Optuna is not installed, or the space is one that it cannot search."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(f"SEARCH='optuna' of {path} needs Optuna; run pip install 'hpcvision[optuna]'") from None
    if len(plan.surfaces) + plan.removed > 1 and len(plan.surfaces) != 1:
        raise UserError(f"SEARCH='optuna' of {path} takes no tune.grid_search; use tune.choice")


def in_words(domain: Any) -> str:
    """A distribution, the same text for the same one."""
    if isinstance(domain, FillCap):
        return "fills the cap"
    if hasattr(domain, "domain_str"):
        sampler = domain.get_sampler()
        inner = f" of {sampler.get_sampler()} in steps of {sampler.q}" if hasattr(sampler, "q") else f" of {sampler}"
        return f"{type(domain).__name__} {domain.domain_str}{inner}"
    return json.dumps(domain)
