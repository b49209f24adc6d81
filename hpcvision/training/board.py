"""TensorBoard: curves, a grid of augmented inputs, and the settings as HParams, in one event file per stay."""

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvision.config import RunConfig, flatten
from hpcvision.rundir import RunDir

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GRID_COLUMNS = 8


class Board:
    """Writes event files on the main rank; `introduce` writes what comes first, into the file of a run's beginning."""

    def __init__(self, rundir: RunDir, *, first_step: int, introduce: Callable[["Board"], None]) -> None:
        self.folder, self.first_step, self.introduce = str(rundir.tensorboard), first_step, introduce
        self._writer: SummaryWriter | None = None

    def begin(self) -> "SummaryWriter":
        """The writer, made when first asked for: it is imported and draws for 0.17 s, which no first step waits for."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = silent_about_the_disk
            self._writer = SummaryWriter(self.folder, purge_step=self.first_step + 1 if self.first_step else None)
            if not self.first_step:
                self.introduce(self)
        return self._writer

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One point for each `group/name`."""
        for name, value in values.items():
            self.begin().add_scalar(name, value, step)

    def images(self, name: str, images: torch.Tensor, step: int) -> None:
        """A grid of (N, 3, H, W) images in [0, 1], eight in a row."""
        self.begin().add_image(name, grid(images.cpu().float()), step)

    def pictures(self, name: str, images: NDArray[np.uint8], step: int) -> None:
        """As `images`, of (N, H, W, 3) uint8."""
        self.images(name, torch.from_numpy(images).permute(0, 3, 1, 2) / 255, step)

    def settings(self, config: RunConfig, metrics: Iterable[str]) -> None:
        """The flattened configuration as HParams, compared by the last values of these metrics, in this event file.

        Written after the first step, so that it is there for one that is stopped or killed, too.
        SummaryWriter.add_hparams would start a second folder, which TensorBoard shows as a run of its own.
        """
        from torch.utils.tensorboard.summary import hparams

        scores = [f"{group}/{name}" for group in ("validation", "final_test") for name in ("loss", *metrics)]
        values: dict[str, Any] = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(config.model_dump(mode="json")).items()
        }
        for summary in hparams(values, dict.fromkeys(scores, 0.0)):
            self.begin().file_writer.add_summary(summary)

    def close(self) -> None:
        """Write everything out, and the beginning where nothing was written."""
        self.begin().close()


def silent_about_the_disk(event: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, which dies of a full disk with a traceback; the next call here says so anyway."""
    if not isinstance(event.exc_value, OSError):
        threading.__excepthook__(event)


def grid(images: torch.Tensor) -> torch.Tensor:
    """(3, rows * H, 8 * W) picture of (N, 3, H, W) images; missing places are black."""
    count, channels, height, width = images.shape
    rows = -(-count // GRID_COLUMNS)
    places = torch.zeros(rows * GRID_COLUMNS, channels, height, width)
    places[:count] = images
    table = places.reshape(rows, GRID_COLUMNS, channels, height, width)
    return table.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, GRID_COLUMNS * width)
