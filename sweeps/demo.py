"""Four small trials on drawn images: width, batch size and learning rate of Baby MobileNet. One minute on two cores."""

from ray import tune

BASE = "cifar100_baby_mobilenet"
FIXED = {
    "name": "demo_trial",
    "data.source": "synthetic",
    "train.steps": 60,
    "optim.warmup_steps": 10,
    "optim.decay_every": 20,
    "cadence.log_every": 10,
    "cadence.evaluate_every": 60,
}
SPACE = {
    "model.width": tune.choice([0.25, 0.5, 0.75, 1.0]),
    "train.global_batch_size": tune.choice([32, 64]),
    "optim.learning_rate": tune.loguniform(0.03, 0.3),
}
OBJECTIVE = "accuracy"
TRIALS = 4
