"""How much room on the disk a run needs, looked at before it starts."""

import resource
import shutil
from pathlib import Path

from hpcvision.config import RunConfig
from hpcvision.errors import UserError

# Measured on both classifiers: a point of the curves takes 200 bytes in log.jsonl, 500 in the event file and 60 in the
# archive; configuration, pictures, augmented inputs, confusion matrix and HDF5's own 700,000.
BYTES_PER_POINT = 1_000
BYTES_IN_ANY_RUN = 2_000_000


def bytes_needed(config: RunConfig, stored_numbers: int) -> tuple[int, int]:
    """(all files of the run at their largest, the largest single file), estimated from above."""
    weights = 4 * stored_numbers
    sets = 2 if config.ema.beta else 1
    moments = 2 if config.optim.optimizer == "adamw" else 1
    points = config.train.steps // config.cadence.log_every + 2 * (config.train.steps // config.cadence.evaluate_every)
    curves = BYTES_PER_POINT * (points + 2)
    checkpoint = (sets + moments) * weights
    pictures = 0
    if config.task.kind == "diffuse":
        # Random samples of both sets of weights and the best of each, both kinds of interpolation, the strips.
        rows = 2 * config.sample.interpolation_pairs + 4
        drawn = 3 * config.sample.images + rows * config.sample.interpolation_points
        pictures = 3 * config.model.image_size**2 * drawn
    archive = sets * weights + curves + pictures
    # Two checkpoints and one archive stay, and one of each is being written.
    return 3 * checkpoint + 2 * archive + curves + pictures + BYTES_IN_ANY_RUN, max(checkpoint, archive)


def check_space(config: RunConfig, stored_numbers: int, folder: Path, *, fresh: bool) -> None:
    """Raise UserError when the disk of `folder`, or the limit on the size of a file, cannot hold the run.

    stored_numbers: parameters and buffers of the model. What an unfinished run has written already counts as room,
    unless it is set aside (`fresh`).
    """
    needed, largest = bytes_needed(config, stored_numbers)
    there = folder
    while not there.exists():
        there = there.parent
    have = 0 if fresh else sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(there).free
    if free + have < needed:
        raise UserError(
            f"{folder} needs about {megabytes(needed - have)} MB, but the disk has {megabytes(free)} MB free; make "
            "room or choose another --runs or $HPCVISION_RUNS"
        )
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < largest:
        raise UserError(
            f"the largest file of {folder} needs about {megabytes(largest)} MB, but this session allows files of "
            f"{megabytes(limit)} MB; see ulimit -f"
        )


def megabytes(count: int) -> str:
    """With one digit after the point."""
    return f"{count / 1e6:,.1f}"


def disk_of(path: Path) -> str:
    """The kind of file system that holds a path, such as nfs4."""
    here = path.resolve()
    best, kind = "", "an unknown disk"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, name, *_ = line.split()
        place = place.replace("\\040", " ")
        if here.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, name
    return kind
