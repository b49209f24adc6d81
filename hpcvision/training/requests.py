"""What `hpcvision sample`, `interpolate` and `evaluate` draw from a trained model; every rank does its share."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvision import data, diffusion
from hpcvision.config import DiffuseConfig, RunConfig, SampleConfig
from hpcvision.config.run import Weights
from hpcvision.distributed import Rank
from hpcvision.errors import UserError
from hpcvision.models import build_model
from hpcvision.results.reader import read_model
from hpcvision.results.record import Rows, Samples, Score
from hpcvision.results.writer import add_scores, write_images
from hpcvision.training import scoring
from hpcvision.training.artefacts import Gallery
from hpcvision.training.generation import Generator, Progress, balanced_labels
from hpcvision.training.precision import choose_precision, set_arithmetic
from hpcvision.training.progress import Drawn, StepProgress

FORWARD_POINTS = 10


@dataclass(frozen=True)
class Request:
    """What is to be drawn, as plain values, so that it can be handed to the processes."""

    kind: str
    """A key of `WORK`."""
    archive: str
    """results.h5 of a diffusion run."""
    output: str
    """The file to write."""
    config: dict[str, Any]
    """The run's configuration with the sampling settings that were asked for."""
    weights: list[Weights]
    """One set of weights; for evaluate one or both."""
    options: dict[str, Any] = field(default_factory=dict)


class Work:
    """A request on one rank: the generator, the weights, and a progress bar over all that will be drawn."""

    def __init__(self, request: Request, rank: Rank, total: float, stop_code: Callable[[], int] = lambda: 0) -> None:
        self.request, self.rank, self.stop_code = request, rank, stop_code
        self.archive, self.output = Path(request.archive), Path(request.output)
        self.config = RunConfig.model_validate(request.config)
        set_arithmetic(self.config.train, rank)
        self.run, self.stored = read_model(self.archive)
        self.model = build_model(self.config.model).eval()
        if self.config.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.model.to(rank.device)
        self.precision = choose_precision(self.config.train, rank)
        self.images = Generator(self.config, rank, self.precision)
        self.shape = {"image_size": self.config.model.image_size, "num_classes": self.config.model.num_classes}
        self.bar = StepProgress(first_step=0, steps=round(total), name="images", is_main=rank.is_main, unit="image")
        self.progress: Progress = Drawn(self.bar, total, rank.world_size)

    def __enter__(self) -> "Work":
        self.bar.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.__exit__(None, None, None)

    def gallery(self, weights: Weights, settings: SampleConfig | None = None) -> Gallery:
        """The model with these weights, ready to draw with the settings of the request."""
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in self.stored[weights].items()})
        config = self.config if settings is None else self.config.model_copy(update={"sample": settings})
        images = Generator(config, self.rank, self.precision)
        images.stop_code = self.stop_code
        power = None
        if config.sample.variance == "analytic" and self.request.kind in ("sample", "evaluate"):
            split = data.load(config.data, "train", **self.shape)
            power = images.noise_power(self.model, split.images, split.labels.to(self.rank.device), config.sample)
        return Gallery(images, self.model, weights, power, progress=self.progress)

    def write(self, **pictures: Any) -> None:
        """The pictures' archive, by the main rank; it names the run, and the pictures say how they were drawn."""
        if self.rank.is_main:
            run = self.run
            facts = {"name": run.run_name, "fingerprint": run.fingerprint, "track": run.track}
            write_images(self.output, facts | {"config_json": run.model_dump_json()}, **pictures)

    def real_images(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, 3, H, W) uint8 and labels of the validation split; raises UserError for an index not there."""
        split = data.load(self.config.data, "validation", **self.shape)
        for index in indices:
            if not 0 <= index < len(split.labels):
                raise UserError(f"image {index} is not there; validation has 0 to {len(split.labels) - 1}")
        return split.images[indices], split.labels[indices]


def sample(work: Work) -> None:
    """Images of consecutive seeds and of the given classes in turn."""
    options, gallery = work.request.options, work.gallery(work.request.weights[0])
    seeds = [options["seed"] + number for number in range(options["images"])]
    classes = options["classes"]
    labels = (
        torch.tensor(classes)[torch.arange(len(seeds)) % len(classes)]
        if classes
        else balanced_labels(len(seeds), work.config.model.num_classes)
    )
    work.write(samples={"random": gallery.samples(seeds, labels, work.config.sample)})


def interpolate(work: Work) -> None:
    """Rows between the samples of two classes."""
    options, gallery = work.request.options, work.gallery(work.request.weights[0])
    ends = torch.tensor(options["pairs"])
    seeds = options["seed"] + torch.arange(2 * len(ends)).reshape(-1, 2)
    work.write(interpolations={options["method"]: gallery.way(seeds, ends, options["points"], options["method"])})


def from_images(work: Work) -> None:
    """A row between two real images, through the noise that each of them is encoded in."""
    options, gallery = work.request.options, work.gallery(work.request.weights[0])
    real, labels = work.real_images(options["images"])
    noise = gallery.images.encode(work.model, real, labels, work.config.sample)
    rows = gallery.between(noise[None], labels[None], options["points"], "slerp")
    rows.attributes |= {"method": "slerp between encoded real images", "validation_images": options["images"]}
    ends = rows.images[0, [0, -1]].astype(np.float64)
    difference = ends - real.permute(0, 2, 3, 1).numpy()
    rows.attributes["reconstruction_error"] = np.sqrt(np.square(difference).mean((1, 2, 3)))
    originals = Samples(real.permute(0, 2, 3, 1).numpy(), labels.numpy(), np.asarray(options["images"]), {"real": True})
    work.write(samples={"real": originals}, interpolations={"slerp_of_real": rows})


def forward(work: Work) -> None:
    """Real images noised step by step, what the model makes of each, and the way of the last noise back to an image."""
    options, gallery = work.request.options, work.gallery(work.request.weights[0])
    real, labels = work.real_images(options["images"])
    images, task = work.images, work.config.task
    assert isinstance(task, DiffuseConfig), "checked when the archive was opened"
    timesteps = torch.linspace(0, task.timesteps - 1, FORWARD_POINTS).round().long()
    noise = diffusion.image_noise([options["seed"] + i for i in range(len(real))], images.shape)
    strips = images.noised_and_found(work.model, real, labels, noise, timesteps)
    clean = real.float() / 127.5 - 1
    last = diffusion.add_noise(clean, noise, images.alpha_bars[-1:].cpu().expand(len(real)))
    back, ways = images.watched(
        work.model,
        range(len(real)),
        labels,
        gallery.deterministic_settings,
        points=FORWARD_POINTS,
        noise=last,
        progress=work.progress,
    )
    ends = torch.stack([labels, labels], dim=1).numpy()
    shared = images.attributes(gallery.deterministic_settings, gallery.weights)
    shared |= {"validation_images": options["images"]}
    work.write(
        strips={
            "noised": Rows(strips[0], ends, shared | {"timesteps": timesteps.tolist()}),
            "noised_found_in_one_step": Rows(strips[1], ends, shared | {"timesteps": timesteps.tolist()}),
            "noised_denoised": Rows(back, ends, shared | {"timesteps": ways}),
        }
    )


def evaluate(work: Work) -> None:
    """Scores for every set of weights and number of steps against every split, over several sets of seeds."""
    options, config, rank = work.request.options, work.config, work.rank
    extractor = scoring.extractor_of(config, Path(options["extractor"]) if options["extractor"] else None, rank.device)
    count, labels = options["images"], balanced_labels(options["images"], config.model.num_classes)
    if count < extractor.size:
        raise UserError(
            f"--images={count} is fewer than the {extractor.size} features of {extractor.name}, too few for their "
            f"covariance; give at least {extractor.size}"
        )
    references = [scoring.reference_of(config, split, extractor, rank) for split in options["against"]]
    reads_test = "test" in options["against"]
    for weights in work.request.weights:
        for steps in options["steps_grid"]:
            settings = config.sample.model_copy(update={"steps": steps})
            scores: dict[str, Score] = {}
            gallery = work.gallery(weights, settings)
            found: dict[str, list[dict[str, float]]] = {reference.split: [] for reference in references}
            by_class: dict[str, dict[str, NDArray[Any]]] = {}
            for number in range(options["sets"]):
                first = options["seed"] + number * count
                began = time.perf_counter()
                pixels = gallery.samples(list(range(first, first + count)), labels, settings).images
                seconds = (time.perf_counter() - began) / count
                described = scoring.describe(
                    extractor, torch.from_numpy(pixels).permute(0, 3, 1, 2), labels, rank, work.progress
                )
                for reference in references:
                    values = scoring.score(extractor, described, reference, seed=number)
                    found[reference.split].append(values | {"seconds_per_image": seconds})
                    if number == 0:
                        by_class[reference.split] = scoring.score_by_class(extractor, described, reference)
            for reference in references:
                sets = found[reference.split]
                name = f"{extractor.name}_{reference.split}_{weights}_{settings.sampler}_{steps}"
                if settings.guidance_scale != 1:
                    name += f"_guided_{settings.guidance_scale:g}"
                if settings.guidance_interval:
                    name += "_within_{:g}_{:g}".format(*settings.guidance_interval)
                scores[name] = Score(
                    values={key: [values[key] for values in sets] for key in sets[0]},
                    by_class=by_class[reference.split],
                    passport={
                        "extractor": extractor.name,
                        "extractor_sha256": extractor.sha256,
                        "resize": extractor.resize,
                        "pixel_dtype": "uint8",
                        "images": count,
                        "first_seed": options["seed"],
                        "sets_of_seeds": options["sets"],
                        "reference": reference.split,
                        "reference_sha256": reference.sha256,
                        "reference_images": len(reference.described.labels),
                        "device": rank.device.type,
                        "precision": work.precision,
                        "processes": rank.world_size,
                        "torch": str(torch.__version__),
                        **gallery.images.attributes(settings, weights),
                        **scoring.reference_facts(extractor, reference),
                    },
                )
            if rank.is_main:  # now, as the next ones may take hours
                add_scores(work.output, scores, reads_test=reads_test)
            reads_test = False


WORK: dict[str, Callable[[Work], None]] = {
    "sample": sample,
    "interpolate": interpolate,
    "from_images": from_images,
    "forward": forward,
    "evaluate": evaluate,
}


def images_to_draw(request: Request) -> float:
    """How many images' worth of sampling a request is, for its progress bar."""
    options = request.options
    match request.kind:
        case "sample":
            return float(options["images"])
        case "interpolate":
            return float(len(options["pairs"]) * options["points"])
        case "from_images":
            return float(options["points"])
        case "evaluate":
            sets = len(request.weights) * len(options["steps_grid"]) * options["sets"]
            return float(2 * sets * options["images"])  # each is drawn, and then looked at by the extractor
        case _:
            return float(len(options["images"]))
