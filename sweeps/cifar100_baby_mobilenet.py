"""Paper A's classifier: width, batch size, step decay and EMA beta below the cap, by validation accuracy."""

from ray import tune

from hpcvision.sweep import asha

BASE = "cifar100_baby_mobilenet"
FIXED = {"ema.headline": "ema"}
SPACE = {
    "model.width": tune.uniform(0.5, 1.5),
    "train.global_batch_size": tune.choice([128, 256, 512]),
    "optim.decay_factor": tune.uniform(0.4, 1.0),
    "ema.beta": tune.choice([0.99, 0.995, 0.998, 0.999]),
}
OBJECTIVE = "accuracy"
TRIALS = 32
SCHEDULER = asha(first_rung=500, reduction_factor=3)
