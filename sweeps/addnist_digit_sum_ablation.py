"""What the recipe of `addnist_digit_sum` owes to the distortion of its digits, after 2,000 steps.

By the validation split, 89 % of whose digits are in the training images as well: it tells what helps to learn them, and
not which of two distortions reads new digits better. For that LOG.md has probes with digits held out.
"""

BASE = "addnist_digit_sum"
FIXED = {
    "name": "digit_sum_ablation",
    "train.steps": 2000,
    "optim.warmup_steps": 200,
    "cadence.evaluate_every": 500,
}


def distortion(strength: float) -> dict[str, float]:
    """So many times the job's rotation (degrees), change of scale, shear and shift (pixels)."""
    whole = {"rotation_degrees": 12, "scale": 0.12, "shear": 0.15, "shift_pixels": 2}
    return {f"data.augmentation.{key}": round(strength * value, 3) for key, value in whole.items()}


VARIANTS = {
    "whole recipe": {},
    "0.6 times the distortion": distortion(0.6),
    "1.5 times the distortion": distortion(1.5),
    "no distortion": distortion(0.0),
    "learning rate 3e-3": {"optim.learning_rate": 3e-3},
}
OBJECTIVE = "accuracy"
