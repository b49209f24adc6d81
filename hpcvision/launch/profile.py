"""Where runs go: one TOML file per cluster, apart from everything that is science."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from hpcvision.config.catalogue import shelf
from hpcvision.config.frozen import Frozen
from hpcvision.errors import UserError


class Profile(Frozen):
    """A cluster, or this machine."""

    executor: Literal["local", "slurm"] = "slurm"
    """local: submitit's local executor on this machine."""
    time_limit_minutes: int = Field(1440, ge=1)
    """Longest stay; a run stops itself in time and goes on with the next submission."""
    account: str | None = None
    """Slurm: --account, where the site requires one."""
    partition: str | None = None
    """Slurm: --partition."""
    qos: str | None = None
    """Slurm: --qos."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs on every node of the job; one process each."""
    cpus_per_task: int = Field(1, ge=1)
    """CPU cores of every process."""
    memory_gb: int | None = Field(None, ge=1)
    """Slurm: memory per node; None asks for nothing."""
    setup: tuple[str, ...] = ()
    """Lines of the batch script before the command: modules, activation of the environment."""


def profile_folder() -> Path:
    """Where the shipped profiles are."""
    return shelf("slurm") / "profiles"


def load_profile(wanted: str) -> Profile:
    """A profile by name or by the path of a .toml file."""
    path = Path(wanted) if wanted.endswith(".toml") else profile_folder() / f"{wanted}.toml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in profile_folder().glob("*.toml")))
        raise UserError(f"there is no cluster profile {wanted!r}; choose one of {known}, or give a .toml file")
    try:
        return Profile.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
