"""Everything that changes during a run: made fresh, stored in a checkpoint, and restored from one bit for bit."""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpcvision.config import RunConfig
from hpcvision.config.run import Precision, Weights
from hpcvision.distributed import Rank
from hpcvision.models import build_model
from hpcvision.training.batch_norm import synchronize
from hpcvision.training.compiler import postpone_compiler
from hpcvision.training.ema import WeightAverage
from hpcvision.training.optim import build_optimizer


@dataclass
class State:
    """The model, its average, its optimiser, and the counters of a run on one rank."""

    model: nn.Module
    trained: nn.Module
    """The model, compiled when the run asks for that."""
    ddp: nn.Module
    """The model inside DistributedDataParallel, also in a world of one."""
    evaluated: nn.Module
    """A second copy that evaluation loads weights into, so that training is never disturbed."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    precision: Precision
    """Chosen when the run began."""
    knobs: torch.Tensor
    """(2,) float32 on the device: learning rate of this step, share of the weights that the average takes in."""
    steps_done: torch.Tensor
    """int64 on the device: `step` as the device sees it."""
    sums: torch.Tensor
    """(1 + metrics + 1,) float64: loss, metrics and count on this rank since the last point of the curve."""
    first_bad_step: torch.Tensor
    """The first step with a non-finite loss on this rank, or a huge number."""
    step: int = 0
    seconds: float = 0.0
    """Training time over all stays."""


@dataclass(frozen=True)
class Outcome:
    """How a stay ended; `scores` are those of the test split when it finished."""

    finished: bool
    step: int
    reason: str
    scores: dict[str, float]


NEVER = 2**62

# BatchNorm uses the statistics of its own rank; they are averaged over the ranks for evaluation only. torch 2.15
# renamed the argument and warns about the old name.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
NO_BUFFER_SYNC: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


def fresh(config: RunConfig, rank: Rank, metrics: int, precision: Precision) -> State:
    """The state before the first step; the same weights on every rank by construction."""
    if not config.train.compile:
        postpone_compiler()
    model = build_model(config.model, seed=config.seed).to(rank.device)
    if config.train.batch_norm == "synchronized":
        synchronize(model)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    trained: nn.Module = torch.compile(model) if config.train.compile else model  # type: ignore[assignment]
    knobs = torch.zeros(2, device=rank.device)
    return State(
        model=model,
        trained=trained,
        ddp=wrap(trained, rank),
        evaluated=copy.deepcopy(model).eval(),
        optimizer=build_optimizer(config.optim, model, knobs[0]),
        scaler=build_scaler(precision, rank),
        average=WeightAverage(config.ema, model) if config.ema.beta else None,
        precision=precision,
        knobs=knobs,
        steps_done=torch.zeros((), dtype=torch.int64, device=rank.device),
        sums=torch.zeros(2 + metrics, dtype=torch.float64, device=rank.device),
        first_bad_step=torch.full((), NEVER, dtype=torch.int64, device=rank.device),
    )


def wrap(model: nn.Module, rank: Rank, *, init_sync: bool = True) -> DistributedDataParallel:
    """The model inside DDP; init_sync: compare the weights of the ranks first, and take rank 0's buffers for all."""
    return DistributedDataParallel(
        model,
        init_sync=init_sync,
        device_ids=[rank.device] if rank.device.type == "cuda" else None,
        **NO_BUFFER_SYNC,
        gradient_as_bucket_view=True,
        static_graph=True,
    )


def build_scaler(precision: Precision, rank: Rank) -> torch.amp.GradScaler:
    """The loss scaling of fp16; does nothing in the other precisions."""
    return torch.amp.GradScaler(rank.device.type, enabled=precision == "fp16")


def float_buffers(model: nn.Module) -> list[str]:
    """Names of the buffers that differ between ranks: BatchNorm's running mean and variance."""
    return [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]


def weights_of(state: State, kind: str, rank: Rank) -> dict[str, torch.Tensor]:
    """The `raw` or `ema` weights with the buffers averaged over the ranks; call it on every rank."""
    assert kind == "raw" or state.average is not None, "asked for only when an average is kept"
    source = state.model.state_dict() if kind == "raw" else state.average.state  # type: ignore[union-attr]
    weights = dict(source)
    names = float_buffers(state.model)
    if names and rank.world_size > 1:
        flat = rank.sum(torch.cat([weights[name].flatten() for name in names])) / rank.world_size
        for name, values in zip(names, flat.split([weights[name].numel() for name in names]), strict=True):
            weights[name] = values.view_as(weights[name])
    return weights


def kinds(state: State) -> list[Weights]:
    """The sets of weights that the run has."""
    return ["raw", "ema"] if state.average else ["raw"]


def load_for_evaluation(state: State, kind: str, rank: Rank) -> nn.Module:
    """The evaluation copy with the given weights; call it on every rank."""
    state.evaluated.load_state_dict(weights_of(state, kind, rank))
    return state.evaluated


def stored(state: State, config: RunConfig, rank: Rank) -> dict[str, Any]:
    """The content of a checkpoint, complete on the main rank; call it on every rank."""
    return {
        "step": state.step,
        "seconds": state.seconds,
        "config": config.model_dump(mode="json"),
        "world_size": rank.world_size,
        "precision": state.precision,
        "model": state.model.state_dict(),
        "average": state.average.state if state.average else None,
        "average_updates": state.average.updates if state.average else 0,
        "optimizer": state.optimizer.state_dict()["state"],
        "scaler": state.scaler.state_dict(),
        # What differs from rank to rank, one row each.
        "rank_buffers": rank.gather(rank_values(state)),
        "rank_sums": rank.gather(state.sums),
    }


def rank_values(state: State) -> torch.Tensor:
    """Float buffers of the model and of the average on this rank, as one vector."""
    names = float_buffers(state.model)
    sources = [state.model.state_dict()] + ([state.average.state] if state.average else [])
    values = [source[name].flatten() for source in sources for name in names]
    return torch.cat(values) if values else torch.zeros(1, device=state.sums.device)


def restore(state: State, content: dict[str, Any], rank: Rank) -> None:
    """Put the content of a checkpoint back; with another world size, what differed between ranks is averaged."""
    state.step, state.seconds = content["step"], content["seconds"]
    state.steps_done.fill_(state.step)
    state.model.load_state_dict(content["model"])
    if state.average:
        state.average.load(content["average"], content["average_updates"])
    # The groups come from the configuration, and hold the learning rate that the device reads.
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": content["optimizer"]})
    for group in state.optimizer.param_groups:
        group["lr"] = state.knobs[0]
    state.scaler.load_state_dict(content["scaler"])
    rows, sums = content["rank_buffers"], content["rank_sums"]
    same_world = content["world_size"] == rank.world_size
    state.sums.copy_(sums[rank.index] if same_world else sums.sum(0) / rank.world_size)
    values = (rows[rank.index] if same_world else rows.mean(0)).to(rank.device)
    names = float_buffers(state.model)
    buffers = dict(state.model.named_buffers())
    targets = [buffers[name] for name in names] + (
        [state.average.state[name] for name in names] if state.average else []
    )
    if targets:
        for target, part in zip(targets, values.split([target.numel() for target in targets]), strict=True):
            target.copy_(part.view_as(target))
