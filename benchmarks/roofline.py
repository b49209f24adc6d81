"""What a device can do at most, and what a step asks of it: arithmetic and memory traffic; no table of its own."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ranks import settle
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpcvision.distributed import Rank


def matrix_product_rate(side: int, dtype: torch.dtype, rank: Rank) -> float:
    """Floating-point operations per second of the product of two matrices, `side` x `side`."""
    one, other = (torch.randn(side, side, device=rank.device).to(dtype) for _ in range(2))
    result = torch.empty_like(one)
    return 2 * side**3 / seconds_of(lambda: torch.mm(one, other, out=result), rank)


def copy_bandwidth(megabytes: int, rank: Rank) -> float:
    """Bytes per second, read and written ones together, of a copy within the device's memory."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=rank.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), rank)


def seconds_of(call: Callable[[], object], rank: Rank) -> float:
    """Of one call, in the median of 10 times 10 calls after 10 others."""
    seconds = []
    for _ in range(11):
        settle(rank)
        started = time.perf_counter()
        for _ in range(10):
            call()
        settle(rank)
        seconds.append((time.perf_counter() - started) / 10)
    return statistics.median(seconds[1:])


class Traffic(TorchDispatchMode):
    """Counts the operations inside it, and the bytes that they read and write when nothing is kept in a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: object, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        result = function(*arguments, **(keywords or {}))
        aliases = [argument.alias_info for argument in function._schema.arguments]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        # Of the images of a data set only the chosen ones are read.
        read = result if function is torch.ops.aten.index.Tensor else (arguments, keywords)
        changed = [value for value, alias in zip(arguments, aliases, strict=False) if alias is not None]
        if not is_view and "empty" not in function.__name__:
            self.operations += 1
            self.bytes += size_of(read) + (size_of(result) or size_of(changed))
        return result


def size_of(values: object) -> int:
    """Bytes of all tensors in `values`; those that only repeat their memory count once."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    return sum(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) for tensor in tensors)
