"""Starts runs: processes on this machine, submitit, Slurm; the only importer of submitit."""
