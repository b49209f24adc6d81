"""Where runs go: one TOML file per cluster, apart from everything that is science."""

import re
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from hpcvision.config.catalogue import shelf
from hpcvision.config.frozen import Frozen
from hpcvision.errors import UserError


class Profile(Frozen):
    """A cluster, or this machine."""

    executor: Literal["local", "slurm"] = "slurm"
    """local: submitit's local executor on this machine."""
    submit_command: str = "sbatch"
    """Slurm: what takes a batch script; some sites have one of their own, such as ghbatch."""
    account: str | None = None
    """Slurm: --account, where the site requires one."""
    partition: str | None = None
    """Slurm: --partition."""
    qos: str | None = None
    """Slurm: --qos."""
    time_limit_minutes: int = Field(1440, ge=1)
    """Longest stay; a run stops itself in time and goes on with the next one."""
    requeue: bool = True
    """Slurm: an unfinished run queues itself again; False where the site forbids it, see `submit --chain`."""
    nodes: int = Field(1, ge=1)
    """Slurm: nodes of a job."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs on every node of the job; one process each."""
    gpu_request: Literal["gres", "gpus-per-node", "none"] = "gres"
    """Slurm: the option that asks for GPUs; none where they come with the partition."""
    gpu_type: str | None = None
    """Slurm: the type in --gres=gpu:TYPE:N, or none."""
    cpus_per_task: int = Field(1, ge=1)
    """CPU cores of every process."""
    memory: Literal["none", "per_node", "per_cpu", "per_gpu"] = "none"
    """Slurm: which of --mem, --mem-per-cpu, --mem-per-gpu is written; none where memory comes with CPUs or GPUs."""
    memory_gb: float | None = Field(None, gt=0)
    """Slurm: gigabytes for that option."""
    setup: tuple[str, ...] = ()
    """Lines of the batch script before the command: modules, activation of the environment."""
    python: str | None = None
    """Python on the nodes, as their shell reads it, where it is not the one that submits."""
    torch_index: str | None = None
    """Address of the wheels of torch for the site's driver and cards, as pip's -i takes it; none is PyPI."""
    shared_folder: Path | None = None
    """A large folder that login node and nodes share, for runs and data."""
    node_folder: str | None = None
    """A folder of every node's own, such as /local/$USER: TMPDIR of the job, also for what torch.compile builds."""
    max_array_size: int = Field(1000, ge=1)
    """Slurm: tasks of one array; more runs become several arrays (scontrol show config: MaxArraySize - 1)."""
    max_submitted_jobs: int | None = Field(None, ge=1)
    """Slurm: jobs that one user may have in the queue; more runs are packed several into a job."""
    internet_on_nodes: bool | None = None
    """Whether nodes reach the internet; None is unknown. hpcvision never needs it there; doctor says where to fetch."""
    srun_options: tuple[str, ...] = ()
    """Further options for srun."""
    exclude: tuple[str, ...] = ()
    """Slurm: nodes to avoid."""

    @model_validator(mode="after")
    def check_together(self) -> Self:
        """Memory needs its amount, GPUs their option, and what goes into a batch script is a word of Slurm's."""
        for name in ("account", "partition", "qos", "gpu_type", "exclude"):
            words = self.exclude if name == "exclude" else (getattr(self, name),)
            for word in words:
                if word is not None and not re.fullmatch(r"[\w.,@+\[\]-]+", word):
                    raise ValueError(f"{name}={word!r}: write letters, digits and . , _ - @ + only")
        if self.node_folder is not None and not re.fullmatch(r"[\w./${}-]+", self.node_folder):
            raise ValueError(
                f"node_folder={self.node_folder!r}: write a path of letters, digits and . / _ - or $VARIABLE"
            )
        if (self.memory == "none") != (self.memory_gb is None):
            raise ValueError(f"memory={self.memory} and memory_gb={self.memory_gb}: give both or neither")
        if self.memory == "per_gpu" and not self.gpus_per_node:
            raise ValueError("memory=per_gpu needs gpus_per_node above 0")
        return self

    @property
    def tasks_per_node(self) -> int:
        """One process per GPU, or one."""
        return self.gpus_per_node or 1


def profile_folder() -> Path:
    """Where the shipped profiles are."""
    return shelf("slurm") / "profiles"


def own_profile_folder() -> Path:
    """Where `hpcvision init` writes."""
    return Path.home() / ".config" / "hpcvision"


def load_profile(wanted: str) -> Profile:
    """A profile by name, of the user's own or a shipped one, or by the path of a .toml file."""
    folders = (own_profile_folder(), profile_folder())
    candidates = [Path(wanted)] if wanted.endswith(".toml") else [folder / f"{wanted}.toml" for folder in folders]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        known = ", ".join(sorted({found.stem for folder in folders for found in folder.glob("*.toml")}))
        raise UserError(f"there is no cluster profile {wanted!r}; choose one of {known}, or give a .toml file")
    try:
        return Profile.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None
