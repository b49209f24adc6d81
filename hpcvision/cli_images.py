"""The sub-commands that draw images with a trained diffusion model: sample, interpolate, evaluate."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hpcvision.errors import UserError

Run = Annotated[Path, typer.Argument(help="The folder of a diffusion run, or its results.h5.")]
Sampler = Annotated[str | None, typer.Option(help="ddim, ddpm, heun or dpm_solver_2m (default: the run's).")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Evaluations per image (default: the run's; 50 for another sampler).")
]
GuidanceScale = Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is none (default: the run's).")]
GuidanceInterval = Annotated[
    str | None, typer.Option(help="Guide only between these two noise levels, such as 0.2,2.5 (default: the run's).")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first image; the others count on from it.")]
Weights = Annotated[str | None, typer.Option(help="raw or ema (default: the run's headline).")]
Processes = Annotated[int | None, typer.Option(min=1, help="Number of processes (default: one per GPU, or per core).")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The .h5 to write; a picture comes beside it.")]


def sample(
    run: Run,
    sampler: Sampler = None,
    steps: Steps = None,
    eta: Annotated[
        float | None, typer.Option(help="ddim: share of ddpm's noise that is added (default: the run's).")
    ] = None,
    variance: Annotated[str | None, typer.Option(help="ddpm: small, large or analytic (default: the run's).")] = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = None,
    classes: Annotated[
        str | None, typer.Option(help="Names or numbers, such as rose,fox (default: all in turn).")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many (default: 64; with --forward 4).")] = None,
    seed: Seed = 0,
    weights: Weights = None,
    forward: Annotated[
        bool, typer.Option("--forward", help="Noise real validation images step by step, and denoise them.")
    ] = False,
    processes: Processes = None,
    output: Output = None,
) -> None:
    """Draw images of given classes; image i depends on its seed alone, whatever the processes.

    Example: hpcvision sample runs/cifar100_ddpm_small-59407c89c1ed --sampler heun --steps 35 --classes rose,fox
    """
    from hpcvision.launch.generate import class_indices, draw

    sampling: dict[str, Any] = {
        "sampler": sampler,
        "steps": steps,
        "eta": eta,
        "variance": variance,
        "guidance_scale": guidance_scale,
        "guidance_interval": interval_of(guidance_interval),
    }
    if forward and classes:
        raise UserError("--classes has no meaning with --forward, which shows the first validation images")

    def options(config: Any) -> dict[str, Any]:
        if forward:
            return {"images": list(range(images or 4)), "seed": seed}
        return {"images": images or 64, "seed": seed, "classes": class_indices(config, classes) if classes else []}

    draw("forward" if forward else "sample", run, sampling, options, weights, processes, output)


def interpolate(
    run: Run,
    pairs: Annotated[
        str | None, typer.Option(help="Two classes each, such as cockroach:fox,rose:bowl,forest:lizard.")
    ] = None,
    from_images: Annotated[
        str | None, typer.Option(help="Two validation images by number, such as 3,17, instead of classes.")
    ] = None,
    method: Annotated[str, typer.Option(help="slerp, on the arc between the two noises, or linear.")] = "slerp",
    points: Annotated[int, typer.Option(min=2, help="Images from one end to the other, ends included.")] = 10,
    sampler: Sampler = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Network evaluations per image (default: the run's; with --from-images 200)."),
    ] = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = None,
    seed: Seed = 0,
    weights: Weights = None,
    processes: Processes = None,
    output: Output = None,
) -> None:
    """Draw the way between two classes, or between two real images; always with a deterministic sampler.

    Example: hpcvision interpolate runs/cifar100_ddpm_small-59407c89c1ed --pairs rose:bowl,forest:lizard
    """
    from hpcvision.launch.generate import class_pairs, draw, real_pair

    if (pairs is None) == (from_images is None):
        raise UserError("give either --pairs, such as rose:bowl, or --from-images, such as 3,17")
    if method not in ("slerp", "linear"):
        raise UserError(f"--method={method!r} does not exist; choose slerp or linear")
    if from_images and sampler not in (None, "ddim"):
        raise UserError(f"--sampler={sampler} cannot encode images; leave it out, ddim is used")
    sampling: dict[str, Any] = {
        "sampler": "ddim" if from_images else sampler,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": interval_of(guidance_interval),
    }

    def options(config: Any) -> dict[str, Any]:
        if from_images:
            return {"images": real_pair(from_images), "points": points}
        return {"pairs": class_pairs(config, pairs or ""), "seed": seed, "method": method, "points": points}

    draw("from_images" if from_images else "interpolate", run, sampling, options, weights, processes, output)


def evaluate(
    run: Run,
    images: Annotated[int, typer.Option(min=1, help="Images of every set, all classes alike.")] = 10_000,
    steps_grid: Annotated[
        str | None, typer.Option(help="Network evaluations per image, such as 5,10,20,50,1000 (default: the run's).")
    ] = None,
    sets: Annotated[int, typer.Option(min=1, help="Sets of images, each with seeds of its own.")] = 3,
    against: Annotated[str, typer.Option(help="Splits of real images to compare with.")] = "test,train",
    extractor: Annotated[
        Path | None,
        typer.Option(
            help="inception, its weights (.pth), or a classifier's run (default of CIFAR-100: cifar100_features)."
        ),
    ] = None,
    sampler: Sampler = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = None,
    seed: Seed = 0,
    weights: Annotated[str | None, typer.Option(help="raw, ema or raw,ema (default: all that are there).")] = None,
    processes: Processes = None,
) -> None:
    """Score a model's images: distance to real ones, precision, recall, agreement, seconds; into its results.h5.

    Example: hpcvision evaluate runs/cifar100_ddpm_small-59407c89c1ed --images 2000 --steps-grid 5,20,50
    """
    from hpcvision.launch.generate import score_run

    sampling: dict[str, Any] = {
        "sampler": sampler,
        "guidance_scale": guidance_scale,
        "guidance_interval": interval_of(guidance_interval),
    }
    score_run(
        run,
        sampling,
        images=images,
        steps_grid=steps_grid,
        sets=sets,
        against=against,
        extractor=extractor,
        seed=seed,
        weights=weights,
        processes=processes,
    )


def interval_of(words: str | None) -> list[float] | None:
    """[low, high] of `0.2,2.5`."""
    if words is None:
        return None
    try:
        low, high = (float(word) for word in words.split(","))
    except ValueError:
        raise UserError(f"--guidance-interval={words!r}: write two numbers with a comma, such as 0.2,2.5") from None
    return [low, high]
