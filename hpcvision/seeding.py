"""Named random streams: the same (seed, name, counters) give the same numbers on any rank, at any time."""

import hashlib

import torch


def stream_seed(seed: int, name: str, *counters: int) -> int:
    """A 63-bit seed that depends on all arguments; two names or counters never share a stream by accident."""
    text = "/".join([str(seed), name, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, name: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator of the named stream on `device`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, name, *counters))
