"""The words of a sweep's file that Ray Tune has not: fill the cap, and stop poor trials early."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FillCap:
    """In place of a distribution: the largest value with which the model is below the cap."""


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving, in optimisation steps."""

    first_rung: int
    """Step at which trials are compared for the first time."""
    reduction_factor: float
    """One in so many goes on, and the next rung comes after so many times the steps."""

    def rungs(self, steps: int) -> list[int]:
        """Steps below `steps` at which trials are compared, rising."""
        rungs, rung = [], float(self.first_rung)
        while rung < steps:
            rungs.append(math.ceil(rung))
            rung *= self.reduction_factor
        return rungs


def fill_cap(key: str) -> dict[str, FillCap]:
    """For a sweep's SPACE: `fill_cap("model.width") | {...}` solves the width instead of drawing it.

    All other settings are drawn; the value of `key` is then the one with which the model has the most parameters that
    stay below the cap, as closely as its channels can be counted.
    """
    return {key: FillCap()}


def asha(*, first_rung: int, reduction_factor: float = 3) -> Asha:
    """For a sweep's SCHEDULER: trials that are poor at a rung are stopped there (Li et al. 2020, arXiv:1810.05934).

    first_rung: optimisation step of the first comparison; the others follow at `reduction_factor` times the one before.
    """
    return Asha(first_rung, reduction_factor)
