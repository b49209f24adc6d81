"""Four small trials on drawn images: width, batch size and learning rate of Baby MobileNet; a minute or two."""

from ray import tune

BASE = "cifar100_baby_mobilenet"
FIXED = {
    "name": "demo_trial",
    "data.source": "synthetic",
    "train.steps": 60,
    "optim.optimizer": "adamw",
    "optim.schedule": "one_cycle",
    "optim.warmup_steps": 10,
    "cadence.log_every": 10,
    "cadence.evaluate_every": 60,
}
SPACE = {
    "model.width": tune.choice([0.25, 0.5, 0.75, 1.0]),
    "train.global_batch_size": tune.choice([32, 64]),
    "optim.learning_rate": tune.loguniform(1e-3, 1e-2),
}
OBJECTIVE = "accuracy"
TRIALS = 4
