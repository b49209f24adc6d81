"""The hard caps: what a classifier and a generator may cost, and the words used when one does not fit."""

from typing import NamedTuple

from hpcvision.errors import CapExceeded


class Cap(NamedTuple):
    """A model fits when its parameters are *below* `parameters` and its steps are *at most* `steps`."""

    parameters: int
    steps: int


CAPS = {
    "classify": Cap(parameters=100_000, steps=10_000),
    "diffuse": Cap(parameters=1_000_000, steps=50_000),
}


def check_steps(task: str, steps: int) -> None:
    """Raise CapExceeded when `steps` optimisation steps are more than the cap of `task` allows."""
    limit = CAPS[task].steps
    if steps > limit:
        raise CapExceeded(
            f"train.steps={steps:,} is over the cap of {limit:,} optimisation steps for task.kind={task}; "
            f"try train.steps={limit}, or track=auxiliary for a run that enters no claim"
        )


def check_parameters(task: str, parameters: int, *, model: str, widest: float | None) -> None:
    """Raise CapExceeded when a model is not below the cap; `widest` is the largest width that fits, for the hint."""
    limit = CAPS[task].parameters
    if parameters >= limit:
        hint = f"try model.width={widest:g}" if widest else "no width of this model fits"
        raise CapExceeded(
            f"{model} has {parameters:,} parameters, the cap for task.kind={task} is below {limit:,}; "
            f"{hint}, or track=auxiliary for a run that enters no claim"
        )
