"""Paper B's generator: width, batch size, decay and EMA beta, by the distance of 2,000 samples."""

from ray import tune

from hpcvision.sweep import asha

BASE = "cifar100_ddpm_residual"
FIXED = {"optim.schedule": "cosine", "ema.headline": "ema"}
SPACE = {
    "model.width": tune.uniform(0.5, 1.5),
    "train.global_batch_size": tune.choice([64, 128, 256]),
    "optim.final_learning_rate_fraction": tune.loguniform(1e-3, 1.0),
    "ema.beta": tune.choice([0.99, 0.995, 0.998, 0.999]),
}
OBJECTIVE = "frechet"
TRIALS = 16
SCHEDULER = asha(first_rung=2000, reduction_factor=3)
