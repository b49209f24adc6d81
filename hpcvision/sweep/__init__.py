"""Sweeps with Ray Tune; the only importer of ray."""
