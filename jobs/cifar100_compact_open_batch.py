"""`cifar100_compact` at a batch of 1,024, twice paper A's: 98,876 parameters see 10.2 million images in 10,000 steps.

hpcvision train cifar100_compact_open_batch data.train_on=train+validation
"""

from hpcvision.config import RunConfig, apply
from hpcvision.config.catalogue import load_job


def config() -> RunConfig:
    """The same network and recipe; no rate was fitted to the batch."""
    return apply(load_job("cifar100_compact"), {"name": "cifar100_compact_open_batch", "train.global_batch_size": 1024})
