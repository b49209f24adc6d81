"""Paper B's AddNIST network: width, batch size, decay and EMA beta below the cap, by validation accuracy."""

from ray import tune

from hpcvision.sweep import asha

BASE = "addnist_cnn"
FIXED = {"optim.schedule": "cosine", "ema.headline": "ema"}
SPACE = {
    "model.width": tune.uniform(0.5, 1.5),
    "train.global_batch_size": tune.choice([32, 64, 128]),
    "optim.final_learning_rate_fraction": tune.loguniform(1e-3, 1.0),
    "ema.beta": tune.choice([0.99, 0.995, 0.998, 0.999]),
}
OBJECTIVE = "accuracy"
TRIALS = 32
SCHEDULER = asha(first_rung=500, reduction_factor=3)
