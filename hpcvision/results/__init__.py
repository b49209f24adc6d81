"""The HDF5 archive of runs and sweeps; the only importer of h5py."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcvision.results.run import Run, Sweep, load, load_model, load_sweep

__all__ = ["Run", "Sweep", "load", "load_model", "load_sweep"]


def __getattr__(name: str) -> Any:
    """What is named above, imported when it is asked for: training needs no h5py before its first checkpoint."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hpcvision.results import run

    return getattr(run, name)
