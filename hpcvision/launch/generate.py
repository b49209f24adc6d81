"""What `hpcvision sample`, `interpolate` and `evaluate` do: check, start the processes, and write what they made."""

import difflib
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcvision.config import DiffuseConfig, RunConfig, apply
from hpcvision.config.run import Weights
from hpcvision.errors import TrainingStopped, UserError
from hpcvision.launch.job import leave_trace
from hpcvision.launch.local import run_processes, usable_cores
from hpcvision.place import Place
from hpcvision.rundir import RunDir, write_json
from hpcvision.stopping import CtrlC, StopRequest

# Fewer are not worth the seconds and the memory that a process needs to begin.
IMAGES_PER_PROCESS = 50

if TYPE_CHECKING:
    from hpcvision.training.requests import Request


def opened(
    run: Path, sampling: dict[str, Any], usual_steps: int | None = None
) -> tuple[Path, RunConfig, list[Weights]]:
    """(archive, configuration with the given `sample` settings, its sets of weights) of a run; refuses classifiers.

    run: a run's folder or its results.h5;  sampling: settings of `sample` without that word; None is the run's own.
    Another sampler than the run's begins with that sampler's own settings, and 50 steps; usual_steps: where none are
    given, these instead, or as many as there are.
    """
    from hpcvision.results.reader import read_model_facts

    archive = run / "results.h5" if run.is_dir() else run
    config, kinds = read_model_facts(archive)
    if not isinstance(config.task, DiffuseConfig):
        raise UserError(f"{archive} holds a classifier, which draws no images; give the run of a diffusion model")
    given = {f"sample.{name}": value for name, value in sampling.items() if value is not None}
    if given.get("sample.sampler", config.sample.sampler) != config.sample.sampler:
        given = {"sample.eta": 0.0, "sample.variance": "small", "sample.steps": min(50, config.task.timesteps)} | given
    if given.get("sample.guidance_scale") == 1:
        given = given | {"sample.guidance_interval": None}
    if usual_steps and sampling["steps"] is None:
        given = given | {"sample.steps": min(usual_steps, config.task.timesteps)}
    return archive, apply(config, given), kinds


def chosen_weights(config: RunConfig, kinds: list[Weights], words: str | None) -> list[Weights]:
    """The sets of weights named in `words`, comma-separated, which must be there; else the headline's."""
    wanted = words.split(",") if words else [config.ema.headline]
    for word in wanted:
        if word not in kinds:
            raise UserError(f"there are no {word!r} weights in the archive; choose from {', '.join(kinds)}")
    return [kind for kind in kinds if kind in wanted]


def class_indices(config: RunConfig, words: str) -> list[int]:
    """Class indices of comma-separated names or numbers."""
    from hpcvision import data

    names = data.class_names(config.data, image_size=config.model.image_size, num_classes=config.model.num_classes)
    indices = []
    for word in (word.strip() for word in words.split(",")):
        if word.isdecimal() and int(word) < len(names):
            indices.append(int(word))
        elif word in names:
            indices.append(names.index(word))
        else:
            near = difflib.get_close_matches(word, names, n=1)
            hint = f"choose from {', '.join(names[:3])}, ... or a number from 0 to {len(names) - 1}"
            if near:  # some names hold commas, so their number is told, too
                hint = f"did you mean {near[0]!r} ({names.index(near[0])})?"
            raise UserError(f"there is no class {word!r}; {hint}")
    return indices


def class_pairs(config: RunConfig, words: str) -> list[list[int]]:
    """[[from, to], ...] of `rose:bowl,forest:lizard`; the two of a pair must differ."""
    pairs = []
    for word in words.split(","):
        ends = word.split(":")
        if len(ends) != 2:
            raise UserError(f"--pairs: {word!r} is no pair; write two classes with a colon, such as rose:bowl")
        pair = [class_indices(config, end)[0] for end in ends]
        if pair[0] == pair[1]:
            raise UserError(f"--pairs: {word!r} is one class twice; give two different classes")
        pairs.append(pair)
    return pairs


def real_pair(words: str) -> list[int]:
    """[first, second] of `3,17`; the two must differ."""
    numbers = words.split(",")
    if len(numbers) != 2 or not all(number.strip().isdecimal() for number in numbers):
        raise UserError(f"--from-images={words!r}: write the numbers of two validation images, such as 3,17")
    first, second = (int(number) for number in numbers)
    if first == second:
        raise UserError(f"--from-images={words!r} is one image twice; give two different ones")
    return [first, second]


def whole_numbers(words: str, option: str) -> list[int]:
    """Comma-separated numbers, each above 0."""
    parts = [word.strip() for word in words.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option}={words!r}: write whole numbers above 0 with commas, such as 5,10,50")
    return list(dict.fromkeys(int(part) for part in parts))


def draw(
    kind: str,
    run: Path,
    sampling: dict[str, Any],
    options_of: Callable[[RunConfig], dict[str, Any]],
    weights: str | None,
    processes: int | None,
    output: Path | None,
) -> None:
    """Draw what is asked into an .h5 and a picture beside it, by default in `generated` beside the run's archive."""
    from hpcvision.report.figures import drawn_for_user, samples_picture
    from hpcvision.training.requests import Request

    # An encoding is exact only for many steps.
    archive, config, kinds = opened(run, sampling, usual_steps=200 if kind == "from_images" else None)
    chosen = chosen_weights(config, kinds, weights)
    if len(chosen) != 1:
        raise UserError(f"--weights={weights}: one set of weights draws; choose from {', '.join(kinds)}")
    options = options_of(config)
    if output is None:
        settings = config.sample
        sampler = "ddim" if kind != "sample" and settings.sampler == "ddpm" else settings.sampler
        name = f"{kind}-{chosen[0]}-{sampler}-{settings.steps}"
        name += f"-guided-{settings.guidance_scale:g}" if settings.guidance_scale != 1 else ""
        output = unused(archive.parent / "generated" / f"{name}-seed-{options.get('seed', 0)}.h5")
    if output.suffix != ".h5" or output.resolve() == archive.resolve():
        raise UserError(f"--output={output} must end in .h5 and not be the run's own; the picture beside it gets .png")
    generate_here(Request(kind, str(archive), str(output), config.model_dump(mode="json"), chosen, options), processes)
    if this_is_the_main_process():
        picture = drawn_for_user(samples_picture, output, output.with_suffix(".png"))
        print(f"  {output}\n  {picture}")


def unused(path: Path) -> Path:
    """The path, or with the first number that makes it one that does not exist: nothing is overwritten unasked."""
    paths = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in paths if not other.exists())


def score_run(
    run: Path,
    sampling: dict[str, Any],
    *,
    images: int,
    steps_grid: str | None,
    sets: int,
    against: str,
    extractor: Path | None,
    seed: int,
    weights: str | None,
    processes: int | None,
) -> None:
    """Score images of a finished run, add the scores to its archive and show them."""
    from hpcvision.data import SPLIT_NAMES
    from hpcvision.report.tables import print_scores
    from hpcvision.results import load
    from hpcvision.training.requests import Request

    archive, config, kinds = opened(run, sampling)
    stored = load(archive)
    if stored.reduced_from:
        raise UserError(f"{archive} is a reduced copy, perhaps of rounded weights; give the whole archive")
    if not stored.finished:
        raise UserError(
            f"{archive} is of a run that has not finished; its scores would be lost with the next checkpoint"
        )
    chosen = chosen_weights(config, kinds, weights or ",".join(kinds))
    grid = whole_numbers(steps_grid, "--steps-grid") if steps_grid else [config.sample.steps]
    for steps in grid:
        apply(config, {"sample.steps": steps})
    splits = list(dict.fromkeys(against.split(",")))
    for split in splits:
        if split not in SPLIT_NAMES:
            raise UserError(f"--against={against}: there is no split {split!r}; choose from {', '.join(SPLIT_NAMES)}")
    if images % config.model.num_classes:
        below = max(1, images // config.model.num_classes) * config.model.num_classes
        raise UserError(f"--images={images} cannot show {config.model.num_classes} classes equally often; try {below}")
    if not os.access(archive.parent, os.W_OK):
        raise UserError(f"{archive.parent} takes no files, and the scores go into {archive.name} there; copy it first")
    options = {
        "images": images,
        "steps_grid": grid,
        "sets": sets,
        "against": splits,
        "extractor": str(extractor) if extractor else None,
        "seed": seed,
    }
    generate_here(
        Request("evaluate", str(archive), str(archive), config.model_dump(mode="json"), chosen, options), processes
    )
    if this_is_the_main_process():
        print_scores(archive)


def this_is_the_main_process() -> bool:
    """False on the other ranks under srun, which have nothing to say."""
    return Place.from_environment().rank == 0


def generate_here(request: "Request", processes: int | None) -> None:
    """Do what is asked in processes of this machine, or as one rank under srun; Ctrl-C leaves nothing behind."""
    from hpcvision.launch.submit import gpus_here
    from hpcvision.training.requests import images_to_draw

    output = Path(request.output)
    place = Place.from_environment()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if place.world_size > 1:  # under srun: the ranks meet in a folder that all of them can name
            folder = output.parent / f".generate-{place.job_id}-{place.restart}"
            folder.mkdir(exist_ok=True)
            try:
                run_request(RunDir(folder), request)
            finally:
                if place.rank == 0:
                    shutil.rmtree(folder, ignore_errors=True)
            return
        worth = max(1, int(images_to_draw(request)) // IMAGES_PER_PROCESS)
        processes = processes or min(gpus_here() or usable_cores(), worth)
        if processes == 1:
            run_request(RunDir(output.parent), request)
            return
        folder = Path(tempfile.mkdtemp(prefix=".generate-", dir=output.parent))
    except OSError as error:
        raise not_written(output, error) from None
    try:
        write_json(RunDir(folder).request, asdict(request))
        run_processes(RunDir(folder), processes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def not_written(output: Path, error: OSError) -> UserError:
    """What to say when a file could not be read or written on the way to `output`."""
    return UserError(f"{output} could not be made: {error.strerror or error}; choose another place with --output")


def run_request(rundir: RunDir, request: "Request | None" = None) -> None:
    """Draw as the rank that the environment says; the folder is where the ranks meet."""
    # Whoever started this process blocked the signals that a training answers; here they just end it.
    ctrl_c = CtrlC()
    for number in StopRequest.SIGNALS:
        signal.signal(number, ctrl_c if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, StopRequest.SIGNALS)
    from hpcvision import distributed
    from hpcvision.training.requests import WORK, Request, Work, images_to_draw

    request = request or Request(**json.loads(rundir.request.read_text()))
    place = Place.from_environment()
    try:
        rank = distributed.start(place, rundir.folder)
        with Work(request, rank, images_to_draw(request)) as work:
            work.progress = ctrl_c.check(work.progress)
            WORK[request.kind](work)
        distributed.stop()
    except Exception as error:
        if ctrl_c.came:  # another rank has ended already, which is all that went wrong
            raise KeyboardInterrupt from None
        told = not_written(Path(request.output), error) if isinstance(error, OSError) else error
        if place.world_size == 1:
            distributed.stop()
        elif not leave_trace(rundir, place.rank, told):
            raise TrainingStopped(f"rank {place.rank} ends because another one failed before") from None
        raise told from None
