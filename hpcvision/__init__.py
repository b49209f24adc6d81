"""hpcvision: the best vision models that fit under a hard cap, trained on a batch cluster, archived for years."""

__version__ = "0.1.0"
