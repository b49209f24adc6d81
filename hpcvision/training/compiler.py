"""Keeps torch's compiler out of processes that compile nothing."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


class Postponed(ModuleType):
    """Stands for `torch._dynamo` until something of it is needed that is not answered here."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.__path__: list[str] = []  # a package, whose modules `Finder` finds
        # What DDP asks when it is built: anything but python_reducer, and how a compiled DDP would split its graph.
        self.utils = Part(self, "utils", get_optimize_ddp_mode=lambda: "ddp_optimizer")
        # What a process group clears when it begins.
        self.trace_rules = Part(self, "trace_rules", clear_lru_cache=lambda: None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks of any module
            raise AttributeError(name)
        return getattr(self.real(), name)

    def real(self) -> ModuleType:
        """The module itself, which takes this one's place."""
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return importlib.import_module(NAME)

    def disable(self, function: Callable[..., Any] | None = None, *how: Any, **more: Any) -> Any:
        """The function as it is: what is never compiled need not be kept from being compiled."""
        return self.real().disable(function, *how, **more) if function is None else function

    def graph_break(self, *_why: Any) -> None:
        """Nothing: there is no graph."""


class Part:
    """A module of `torch._dynamo` of which only `answers` are known without importing it."""

    def __init__(self, whole: Postponed, name: str, **answers: Callable[..., Any]) -> None:
        self.__dict__.update(answers, _whole=whole, _name=name)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(self._whole.real(), self._name), name)


class Finder(MetaPathFinder, Loader):
    """Lets an import of a module of `torch._dynamo` import all of it first, and then take that module from there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """How to import `torch._dynamo.something` while the package is only stood for."""
        del path, target
        package = sys.modules.get(NAME)
        if not name.startswith(f"{NAME}.") or not isinstance(package, Postponed):
            return None
        package.real()
        self.made = importlib.import_module(name)
        self.spec = self.made.__spec__
        del sys.modules[name]  # Python would execute what it finds there a second time
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module that came with the package."""
        del spec
        return self.made

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed, and keeps what it says of itself."""
        with contextlib.suppress(AttributeError):  # as Python does: torch's settings take no other names
            module.__spec__ = self.spec


def postpone_compiler() -> None:
    """Let DDP and the optimisers do without `torch._dynamo`, unless it has been imported already.

    DDP imports it when it is built, to ask for one setting, and optimisers at their first step (torch 2.15): 898
    modules and 1.1 s of CPU time, nearly as much as importing torch itself, in each process of each run.
    """
    if NAME not in sys.modules:
        sys.modules[NAME] = Postponed()
        sys.meta_path.insert(0, Finder())
