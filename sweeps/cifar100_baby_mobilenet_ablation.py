"""Paper A: "optimisations improved accuracy by 13 %". Each of them removed in turn from its recipe, 2,000 steps.

The paper does not say what each was before. Removed means: batch 64 with the learning rate in proportion, no
augmentation at all, one learning rate throughout (after the warm-up), no dropout. The steps of the decay are scaled to
the shorter run.
"""

BASE = "cifar100_baby_mobilenet"
FIXED = {
    "name": "ablation",
    "train.steps": 2000,
    "optim.warmup_steps": 40,
    "optim.decay_every": 200,
    "cadence.evaluate_every": 500,
}
NO_AUGMENTATION = {
    f"data.augmentation.{key}": value
    for key, value in {
        "crop_padding": 0,
        "flip": False,
        "rotation_degrees": 0,
        "brightness": 0,
        "contrast": 0,
        "saturation": 0,
        "hue": 0,
        "blur_probability": 0,
        "erasing_probability": 0,
    }.items()
}
VARIANTS = {
    "whole recipe": {},
    "batch 64 instead of 512": {"train.global_batch_size": 64, "optim.learning_rate": 0.3 * 64 / 512},
    "no augmentation": NO_AUGMENTATION,
    "no step decay": {"optim.schedule": "constant"},
    "no dropout": {"model.dropout": 0},
    "none of the four": {
        "train.global_batch_size": 64,
        "optim.learning_rate": 0.3 * 64 / 512,
        "optim.schedule": "constant",
        "model.dropout": 0,
        **NO_AUGMENTATION,
    },
}
OBJECTIVE = "accuracy"
