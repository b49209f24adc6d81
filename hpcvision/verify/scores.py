"""Scores computed anew: from weights and data, from stored images, and from images drawn again."""

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpcvision.config import DiffuseConfig, apply
from hpcvision.errors import UserError
from hpcvision.results.files import array
from hpcvision.results.places import Place
from hpcvision.results.run import Run, build, copy_run, read_run
from hpcvision.verify.findings import Finding

if TYPE_CHECKING:
    from hpcvision.data.splits import Split

# Other machines round otherwise: a few images of ten thousand change their class, a distance its third digit.
ACCURACY_WITHIN = 0.003
RELATIVE_WITHIN = 0.01


def on_a_split(run: Run) -> Finding:
    """The final scores, from the weights and the data."""
    from hpcvision import distributed, place
    from hpcvision.training.precision import choose_precision, set_arithmetic
    from hpcvision.training.tasks import TASKS

    split = next((name for name in ("test", "validation") if name in run.scores), None)
    if split is None:
        return Finding("SKIP", "scores anew", "no final scores: the run has not finished")
    config, stored = run.config, run.scores[split]
    rank = distributed.start(place.Place.from_environment(), Path(tempfile.gettempdir()))
    try:
        set_arithmetic(config.train, rank)
        task = TASKS[config.task.kind](config, rank, choose_precision(config.train, rank))
        same_data(run, split, task.batches.split(split))
        model = build(run, run.weights[run.headline]).to(rank.device)
        found = task.evaluate(model, split).scores
    finally:
        distributed.stop()
    words, good = [], True
    for name, value in stored.values.items():
        within = ACCURACY_WITHIN if name == "accuracy" else RELATIVE_WITHIN * abs(value.mean)
        good &= abs(found[name] - value.mean) <= within
        words.append(f"{split} {name} {found[name]:.4f}, stored {value.mean:.4f}")
    return Finding("PASS" if good else "FAIL", "scores anew", "; ".join(words))


def same_data(run: Run, split: str, held: "Split") -> None:
    """Raise UserError when the images here are not those that the run was scored on."""
    from hpcvision import data

    here, there = data.sha256_of(held), run.data.get(f"{split}_sha256")
    if there and here != there:
        raise UserError(
            f"the {split} images here are not the run's ({here[:12]}, not {there[:12]}); fetch the data anew"
        )


def of_stored_images(run: Run) -> Finding:
    """What the selected images were selected by, from the stored pixels."""
    import torch

    from hpcvision.training.scoring import judge_of

    judge, rule = judge_of(run.config, torch.device("cpu"))
    chosen = [images for images in run.samples.values() if rule and rule in images.attributes.get("rule", "")]
    if judge is None or not chosen:
        return Finding("SKIP", "images", "no images that were selected by a classifier")
    apart, count = 0.0, 0
    for images in chosen:
        with images.place.open() as group:
            stored = array(group["merit"])
        count += len(stored)
        apart = max(apart, float(np.abs(judge(images[()], images.labels) - stored).max()))
    words = f"{count} selected images, probability of their class anew at most {apart:.1e} from the stored one"
    return Finding("PASS" if apart < ACCURACY_WITHIN else "FAIL", "images", words)


class Drawn:
    """A score of drawn images: drawn again from the weights, with the sampler and the seeds of its passport."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, run: Run) -> Finding:
        """Draw and score."""
        from hpcvision.launch.generate import generate_here
        from hpcvision.training.requests import Request

        subject, stored = f"scores anew {self.name}", run.scores[self.name]
        passport = stored.passport
        extractor = {"cifar100_features": None, "inception_v3": "inception"}.get(passport["extractor"], "")
        if extractor == "":
            return Finding("SKIP", subject, f"its features, {passport['extractor']}, are not shipped with hpcvision")
        if passport["weights"] not in run.weights:
            return Finding("SKIP", subject, f"the {passport['weights']} weights were left out of this reduced copy")
        if not isinstance(run.config.task, DiffuseConfig):
            raise UserError(f"{run.path} has scores of drawn images, but holds a classifier")
        asked = {f"sample.{key}": passport[key] for key in ("sampler", "steps", "guidance_scale")}
        asked |= {"sample.eta": passport.get("eta", 0.0), "sample.variance": passport.get("variance", "small")}
        asked["sample.guidance_interval"] = passport.get("guidance_interval")
        config = apply(run.config, asked)
        options = {
            "images": passport["images"],
            "steps_grid": [passport["steps"]],
            "sets": passport["sets_of_seeds"],
            "against": [passport["reference"]],
            "extractor": extractor,
            "seed": passport["first_seed"],
        }
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "results.h5"
            copy_run(run, copy, without=f"scores/{self.name}")
            generate_here(
                Request(
                    "evaluate", str(copy), str(copy), config.model_dump(mode="json"), [passport["weights"]], options
                ),
                None,
            )
            found = read_run(Place(copy)).scores.get(self.name)
        if found is None:
            return Finding("FAIL", subject, "drawn again with its passport, it gets another name")
        compared = [name for name in stored.values if name == stored.main or name == "kernel_distance"]
        good = all(
            math.isclose(found.values[name].mean, stored.values[name].mean, rel_tol=RELATIVE_WITHIN, abs_tol=1e-4)
            for name in compared
        )
        words = "; ".join(
            f"{name} {found.values[name].mean:.4f}, stored {stored.values[name].mean:.4f}" for name in compared
        )
        return Finding("PASS" if good else "FAIL", subject, f"{passport['images']:,} images drawn again: {words}")
