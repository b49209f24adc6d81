"""Numbers computed from predictions and images; knows nothing of runs and ranks."""
