"""What a model costs: parameters and multiply-adds, layer by layer, and the hard cap; all on the meta device."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hpcvision.config import CAPS, DenoiserConfig, ModelConfig, RunConfig, check_parameters
from hpcvision.models import build_model
from hpcvision.models.layers import DepthwiseSeparable


def count_parameters(model: nn.Module) -> int:
    """Elements of `model.parameters()`, a shared tensor once; buffers are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


class _Undrawn(TorchFunctionMode):
    """Leaves out the normal numbers of new modules: on the meta device the first ones load torch's compiler, 2 s."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **kwargs)


def without_values(config: ModelConfig) -> nn.Module:
    """The model on the meta device: names and shapes, no memory."""
    with torch.device("meta"), _Undrawn():
        return build_model(config)


@lru_cache(maxsize=1024)
def parameters_of(config: ModelConfig) -> int:
    """Parameter count of a configuration, without allocating the model."""
    return count_parameters(without_values(config))


@lru_cache(maxsize=1024)
def stored_numbers_of(config: ModelConfig) -> int:
    """Elements of the state dict of a configuration: parameters and buffers, without allocating the model."""
    return sum(tensor.numel() for tensor in without_values(config).state_dict().values())


@lru_cache(maxsize=1024)
def activations_of(config: ModelConfig) -> int:
    """Numbers that the layers of a model give out for one image, all together, without allocating them."""
    model = without_values(config).eval()
    count = 0

    def add(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal count
        count += output.numel() if not list(module.children()) else 0

    for module in model.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        model(*example_inputs(config, 1, "meta"))
    return count


# Channels round up at widths of (k + 1/2) / c for a layer of c: two such widths are 2e-6 apart or more up to c = 512.
FINEST = 2**-20


@lru_cache(maxsize=1024)
def largest_below(config: ModelConfig, cap: int, field: str = "width") -> float | None:
    """The largest value of a setting, within FINEST, whose parameter count is below `cap`; None when there is none.

    Takes for granted that a model with a larger value has at least as many parameters.
    """
    low, high = 0.0, 1.0
    while parameters_of(config.model_copy(update={field: high})) < cap:
        low, high = high, high * 2
    while high - low > FINEST:
        middle = (low + high) / 2
        if parameters_of(config.model_copy(update={field: middle})) < cap:
            low = middle
        else:
            high = middle
    return low or None


@lru_cache(maxsize=1024)
def filling(config: ModelConfig, cap: int, field: str = "width") -> float | None:
    """The shortest decimal number with which a model has the most parameters that stay below `cap`, or None."""
    largest = largest_below(config, cap, field)
    if largest is None:
        return None
    most = parameters_of(config.model_copy(update={field: largest}))
    for digits in range(1, 8):
        value = math.floor(largest * 10.0**digits) / 10.0**digits
        if value and parameters_of(config.model_copy(update={field: value})) == most:
            return value
    return largest


def widest_below(config: ModelConfig, cap: int) -> float | None:
    """The largest width, in thousandths, whose parameter count is below `cap`; None when even the smallest is not."""
    largest = largest_below(config, cap)
    return math.floor(1000 * largest) / 1000 or None if largest else None


def check_cap(config: RunConfig) -> int:
    """Parameter count of the run's model; raises CapExceeded when a capped run's model is not below its cap."""
    parameters = parameters_of(config.model)
    if config.track == "capped":
        cap = CAPS[config.task.kind].parameters
        widest = widest_below(config.model, cap) if parameters >= cap else None
        check_parameters(config.task.kind, parameters, model=config.model.kind, widest=widest)
    return parameters


def example_inputs(config: ModelConfig, batch: int, device: str) -> tuple[torch.Tensor, ...]:
    """Zeros of the shapes that the model's forward takes."""
    images = torch.zeros(batch, 3, config.image_size, config.image_size, device=device)
    if isinstance(config, DenoiserConfig):
        return images, *(torch.zeros(batch, dtype=torch.long, device=device) for _ in range(2))
    return (images,)


@dataclass(frozen=True)
class Layer:
    """One row of the layer table."""

    name: str
    kind: str
    output: tuple[int, ...]
    """Output shape without the batch."""
    parameters: int
    multiply_adds: int
    """Per image."""
    share_of_standard: float | None = None
    """Depthwise-separable layers: parameters as a fraction of a standard 3x3 convolution's."""


def layer_table(config: ModelConfig) -> list[Layer]:
    """A row for every layer that has weights of its own, in the order of execution."""
    from torch.utils.flop_counter import FlopCounterMode  # 0.3 s, of every start of a run

    model = without_values(config).eval()
    outputs: dict[str, tuple[int, ...]] = {}
    hooks = []
    counter = FlopCounterMode(display=False)
    rows = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DepthwiseSeparable)
        or (next(module.children(), None) is None and count_parameters(module) > 0)
    }
    inside = tuple(f"{name}." for name, module in rows.items() if isinstance(module, DepthwiseSeparable))
    rows = {name: module for name, module in rows.items() if not name.startswith(inside)} if inside else rows
    for name, module in rows.items():

        def record(_module: nn.Module, _inputs: object, output: torch.Tensor, name: str = name) -> None:
            outputs.setdefault(name, tuple(output.shape[1:]))

        hooks.append(module.register_forward_hook(record))
    with counter, torch.no_grad():
        model(*example_inputs(config, 1, "meta"))
    for hook in hooks:
        hook.remove()
    flops = {key.partition(".")[2]: sum(value.values()) for key, value in counter.get_flop_counts().items()}
    return [
        Layer(
            name=name,
            kind=type(rows[name]).__name__,
            output=shape,
            parameters=count_parameters(rows[name]),
            multiply_adds=flops.get(name, 0) // 2,
            share_of_standard=getattr(rows[name], "share_of_standard", None),
        )
        for name, shape in outputs.items()
    ]


def multiply_adds(config: ModelConfig) -> int:
    """Multiply-adds of one image's forward pass in convolutions, linear layers and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    model = without_values(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example_inputs(config, 1, "meta"))
    return int(counter.get_total_flops()) // 2
