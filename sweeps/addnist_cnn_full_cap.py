"""Paper B's AddNIST network: the cap filled, batch size, decay and EMA beta, by validation accuracy."""

from ray import tune

from hpcvision.sweep import asha, fill_cap

BASE = "addnist_cnn"
FIXED = {"optim.schedule": "cosine", "ema.headline": "ema"}
SPACE = fill_cap("model.width") | {
    "train.global_batch_size": tune.choice([32, 64, 128]),
    "optim.final_learning_rate_fraction": tune.loguniform(1e-3, 1.0),
    "ema.beta": tune.choice([0.99, 0.995, 0.998, 0.999]),
}
OBJECTIVE = "accuracy"
TRIALS = 32
SCHEDULER = asha(first_rung=500, reduction_factor=3)
