"""The HDF5 archive of runs and sweeps; the only importer of h5py."""
