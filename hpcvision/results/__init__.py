"""The HDF5 archive of runs and sweeps; the only importer of h5py."""

from hpcvision.results.run import Run, Sweep, load, load_model, load_sweep

__all__ = ["Run", "Sweep", "load", "load_model", "load_sweep"]
