"""Finds jobs and sweeps by name or path: in the checkout first, else among the files shipped in the wheel."""

import difflib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal

from pydantic import ValidationError

from hpcvision.config.overrides import one_line
from hpcvision.config.run import RunConfig
from hpcvision.errors import UserError

Shelf = Literal["jobs", "sweeps", "slurm"]


def shelf(name: Shelf) -> Path:
    """The folder of shipped jobs, sweeps or cluster files.

    An editable install copies the files of the wheel once, so the checkout beside the package goes first: a job that
    was edited there is the one that runs.
    """
    package = Path(__file__).parent.parent
    checkout = package.parent
    if (checkout / "pyproject.toml").exists() and (checkout / name).is_dir():
        return checkout / name
    return package / "_shipped" / name


def names(name: Shelf) -> list[str]:
    """Names of all shipped jobs or sweeps, sorted."""
    return sorted(path.stem for path in shelf(name).glob("*.py"))


def find(name: Shelf, wanted: str) -> Path:
    """The file of a job or sweep, given by name or as a path to a .py file."""
    if wanted.endswith(".py"):
        path = Path(wanted)
        if path.is_file():
            return path
        raise UserError(f"{wanted!r} does not exist; give the path of a file, or one of {', '.join(names(name))}")
    path = shelf(name) / f"{wanted}.py"
    if path.is_file():
        return path
    known = names(name)
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
    raise UserError(f"there is no {name[:-1]} named {wanted!r}; {hint}")


def load_file(path: Path) -> ModuleType:
    """Execute a job's or sweep's file; it becomes no importable module."""
    # Not through the import system: its bytecode cache takes a file that was edited within the same second, and kept
    # its length, for the old one.
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
    with told_in_one_line(path):
        exec(code, module.__dict__)
    return module


@contextmanager
def told_in_one_line(path: Path) -> Iterator[None]:
    """What goes wrong in the user's file as a UserError with the last line of that file that was reached."""
    try:
        yield
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"{place}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def load_job(wanted: str) -> RunConfig:
    """The RunConfig that a job's `config()` returns."""
    path = find("jobs", wanted)
    module = load_file(path)
    if not hasattr(module, "config"):
        raise UserError(f"{path} has no function config() that returns a RunConfig")
    with told_in_one_line(path):
        config = module.config()
    if not isinstance(config, RunConfig):
        raise UserError(f"config() of {path} returns {type(config).__name__}, not a RunConfig")
    return config
