"""Keeps torch's compiler out of processes that compile nothing."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


class Postponed(ModuleType):
    """Stands for `torch._dynamo` until something of it is needed that is not answered here."""

    __all__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what Python itself asks of any module
            raise AttributeError(name)
        return getattr(self.real(), name)

    def real(self) -> ModuleType:
        """The module itself, which takes this one's place."""
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return importlib.import_module(NAME)

    def disable(self, function: Callable[..., Any], *_recursive: Any, wrapping: bool = True) -> Callable[..., Any]:
        """The function as it is: what is never compiled need not be kept from being compiled."""
        del wrapping
        return function

    def graph_break(self, *_why: Any) -> None:
        """Nothing: there is no graph."""

    class utils:  # noqa: N801 - a module's name, as below
        """Of `torch._dynamo.utils`, what DDP asks when it is built."""

        @staticmethod
        def get_optimize_ddp_mode() -> str:
            """Anything but python_reducer: how a compiled DDP splits its graph."""
            return "ddp_optimizer"

    class trace_rules:  # noqa: N801
        """Of `torch._dynamo.trace_rules`, what a process group asks for when it begins."""

        @staticmethod
        def clear_lru_cache() -> None:
            """Nothing is remembered yet."""


def postpone_compiler() -> None:
    """Let DDP and the optimisers do without `torch._dynamo`, unless it has been imported already.

    DDP imports it when it is built, to ask for one setting, and every optimiser to mark two of its methods (torch
    2.15): 898 modules and 1.6 s of CPU time, as much as importing torch itself, in each process of each run.
    """
    if NAME not in sys.modules:
        sys.modules[NAME] = Postponed(NAME)
