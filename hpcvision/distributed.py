"""Processes of one run: how they meet, and what they exchange."""

import contextlib
import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]

from hpcvision.errors import TrainingStopped, UserError
from hpcvision.place import Place
from hpcvision.rundir import write_json
from hpcvision.stopping import end_at_exit

MEETING_SECONDS = 120.0  # a rank that has not come by then is named in the error
CONNECT_SECONDS = 5.0  # one try; a stale announcement must not use up the time for the meeting
COLLECTIVE_SECONDS = 300.0  # small models exchange in milliseconds; a longer silence means that a rank is gone


@dataclass(frozen=True)
class Rank:
    """This process in the running group: its number, its device, and the few exchanges that training needs."""

    place: Place
    device: torch.device

    @property
    def index(self) -> int:
        """0 .. world_size - 1."""
        return self.place.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.place.world_size

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files."""
        return self.place.rank == 0

    def rows(self, local_batch_size: int) -> slice:
        """This rank's part of a global batch."""
        return slice(self.index * local_batch_size, (self.index + 1) * local_batch_size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all ranks, in place; call it on every rank."""
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise maximum over all ranks, in place; call it on every rank."""
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def any(self, is_so: bool) -> bool:
        """True when it is so on at least one rank; call it on every rank."""
        return bool(self.max(torch.tensor(int(is_so), device=self.device)))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """(world_size, *tensor.shape), the tensors of all ranks in order; call it on every rank."""
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)


def start(place: Place, folder: Path, *, meeting_seconds: float = MEETING_SECONDS) -> Rank:
    """Join the process group of the run in `folder`; nccl on GPUs, gloo elsewhere; every rank has a GPU of its own.

    A world of one uses an in-process store: DDP without any port.
    """
    device = choose_device(place)
    timeout = timedelta(seconds=COLLECTIVE_SECONDS)
    if place.world_size == 1:
        store: Store = HashStore()
    else:
        if place.node_count == 1:
            # One host: gloo otherwise asks the resolver for this host's name, which some nodes cannot answer.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = meet(place, folder, meeting_seconds)
    on_gpu = device.type == "cuda"
    if on_gpu and place.world_size > 1:
        check_own_gpus(store, place, f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}")
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
        device_id=device if on_gpu else None,
    )
    return Rank(place, device)


def stop() -> None:
    """Leave the process group, if there is one; one of several processes then ends as `end_at_exit` tells."""
    if not dist.is_initialized():
        return
    if dist.get_world_size() > 1:
        end_at_exit(0)
    dist.destroy_process_group()


def choose_device(place: Place) -> torch.device:
    """The GPU of this process, or the CPU. CUDA_VISIBLE_DEVICES is read by torch and never written here.

    With --gpus-per-task every task sees one GPU as number 0, hence the remainder.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def check_own_gpus(store: Store, place: Place, gpu: str) -> None:
    """Raise UserError on the ranks whose GPU another rank has, too; gpu: a name that no other GPU has."""
    store.set(f"gpu-{place.rank}", gpu)
    sharing = [rank for rank in range(place.world_size) if store.get(f"gpu-{rank}").decode() == gpu]
    if len(sharing) > 1:
        ranks = ", ".join(map(str, sharing))
        raise UserError(
            f"ranks {ranks} have one GPU ({gpu}); ask for a GPU for each (--gpus-per-node), or start fewer --processes"
        )


def announcement_of(place: Place, folder: Path) -> Path:
    """The file in which rank 0 of this stay says where to meet, or that it still waits."""
    return folder / f"meeting-{place.job_id}-{place.restart}.json"


def announce_waiting(place: Place, folder: Path) -> None:
    """Let the other ranks, if there are any, wait for another `MEETING_SECONDS`, as rank 0 cannot come yet."""
    if place.world_size > 1:
        with contextlib.suppress(OSError):  # it is said again
            write_json(announcement_of(place, folder), {"waiting since": time.time()})


def meet(place: Place, folder: Path, seconds: float) -> Store:
    """A TCP store that all ranks are connected to.

    A port cannot be reserved, only bound, so rank 0 binds first and then announces where in a file of the run folder,
    whose name holds job and restart; the others poll for it.
    """
    announcement = announcement_of(place, folder)
    deadline = time.monotonic() + seconds
    timeout = timedelta(seconds=COLLECTIVE_SECONDS)
    if place.rank == 0:
        host = "127.0.0.1" if place.node_count == 1 else socket.getfqdn()
        server = TCPStore(host, 0, place.world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        token = uuid.uuid4().hex
        server.set(token, "1")
        write_json(announcement, {"host": host, "port": server.port, "token": token})
        store: Store = server
    else:
        store = connect(announcement, place, seconds)
        store.set_timeout(timeout)
        deadline = time.monotonic() + seconds  # rank 0 may have let this one wait for long
    store.set(f"here-{place.rank}", "1")
    keys = [f"here-{rank}" for rank in range(place.world_size)]
    try:
        store.wait(keys, timedelta(seconds=max(1.0, deadline - time.monotonic())))
    except RuntimeError:  # DistStoreError is one
        raise TrainingStopped(
            f"rank {missing_ranks(store, keys)} of {place.world_size} did not come within {seconds:.0f} s; "
            f"look into the log of that process"
        ) from None
    if place.rank == 0:
        announcement.unlink(missing_ok=True)
    return store


def missing_ranks(store: Store, keys: list[str]) -> str:
    """Numbers of the ranks whose key is not in the store; 0 when the store went away with the rank that held it."""
    try:
        return ", ".join(str(rank) for rank, key in enumerate(keys) if not store.check([key]))
    except RuntimeError:
        return "0"


def connect(announcement: Path, place: Place, seconds: float) -> Store:
    """The store that rank 0 announced; one that does not answer, or not with the announced token, is an old one.

    Any news of rank 0 gives it `seconds` more.
    """
    deadline, said = time.monotonic() + seconds, ""
    attempt = timedelta(seconds=min(seconds, CONNECT_SECONDS))
    while time.monotonic() < deadline:
        try:
            before, said = said, announcement.read_text()
            if said != before:
                deadline = time.monotonic() + seconds
            there = json.loads(said)
            store = TCPStore(
                there["host"], there["port"], place.world_size, is_master=False, timeout=attempt, wait_for_workers=False
            )
            if store.check([there["token"]]):
                return store
        except (OSError, ValueError, KeyError, RuntimeError):
            pass
        time.sleep(0.05)
    raise TrainingStopped(
        f"rank 0 of {place.world_size} did not announce itself within {seconds:.0f} s in {announcement}; "
        f"look into the log of rank 0"
    )
