"""Torch's libraries, loaded by a thread while Python imports what it needs before torch."""

import contextlib
import ctypes
import importlib.util
import sys
import threading
from pathlib import Path


def load_torch() -> None:
    """Have a thread load torch's libraries, for a process that is going to import it.

    They take 0.3 s of the 1.3 s of that import (torch 2.15), in which Python need not wait: dlopen lets it go on.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None or "torch" in sys.modules:
        return
    # Not a daemon: a process that ends at once has to wait for it, or would be torn down under the loader's hands.
    threading.Thread(target=_load, args=(Path(found.origin).parent / "lib",)).start()


def _load(folder: Path) -> None:
    # In torch's own order, so that symbols are found in the same libraries; what fails here, torch tries again.
    with contextlib.suppress(OSError):
        ctypes.CDLL(str(folder / "libtorch_global_deps.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libtorch_python.so"))
