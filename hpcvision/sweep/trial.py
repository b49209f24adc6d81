"""A trial inside a Ray process that stays up: it trains its run to the next rung, or to the end, and says how it is."""

import contextlib
import gc
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from ray import tune

from hpcvision.errors import FolderInUse, UserError
from hpcvision.launch.job import AGAIN_FILE, TrainJob
from hpcvision.launch.lock import ONE_TRY
from hpcvision.place import Place
from hpcvision.rundir import RunDir, read_journal
from hpcvision.stopping import ASKED, StopRequest

# A driver that was killed leaves processes which end within seconds, and train until then.
PATIENCE_SECONDS = 120.0

# The distance of generated images, as a sweep measures it: cheap, and never against the test split.
SAMPLES, SAMPLING_STEPS = 2_000, 20


class TrialRun(tune.Trainable):  # type: ignore[misc]
    """What Ray Tune drives; every call of `step` is one stay in the trial's run folder.

    The truth is in that folder, so a trial needs no checkpoint of Ray's. The process goes on to the next trial with
    torch imported and the images in memory.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """The first trial of this process; `config` are plain values from the driver."""
        import torch

        # Of the job that Ray was started in: a trial is a world of its own.
        os.environ |= {"HPCVISION_RANK": "0", "HPCVISION_WORLD_SIZE": "1", "HPCVISION_JOB_ID": config["job_id"]}
        for name in (AGAIN_FILE, ONE_TRY):
            os.environ.pop(name, None)
        # Ctrl-C is the driver's, who asks all trials to save, on this machine and on others.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(config["threads"])
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial of this process."""
        self.settings = new_config
        self.rungs = [rung for rung in new_config["rungs"] if rung > new_config["reported"]]
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung or to the end; what Tune is told then."""
        rundir = RunDir(Path(self.settings["folder"]))
        rung = self.rungs.pop(0) if self.rungs else None
        try:
            with words_into(rundir.folder / "trial.log"):
                outcome = self.stay(rundir, rung)
                step, value = int(str(outcome["step"])), None
                if outcome["ended"] != "stopped":
                    value = self.objective(rundir, step)
        except ObjectiveStopped:
            return self.told("stopped", last_step(rundir), None, StopRequest.reason(ASKED))
        except Exception as error:
            return self.told("failed", last_step(rundir), None, reason_of(rundir, error))
        if value is not None and not math.isfinite(value):
            return self.told("failed", step, None, f"{self.settings['objective']} is not finite at step {step:,}")
        return self.told(str(outcome["ended"]), step, value, str(outcome["reason"]))

    def objective(self, rundir: RunDir, step: int) -> float:
        """The objective after `step` steps; a distance is measured now, and kept in the run's archive."""
        if self.settings["objective"] == "frechet":
            against = ["validation"] + ["test"] * self.settings["read_test"]
            measure_distance(rundir, against, self.settings["stop_file"])
            return known_distance(rundir)
        return objective_of(rundir, self.settings["objective"], step)

    def told(self, ended: str, step: int, value: float | None, reason: str) -> dict[str, Any]:
        """A result; `ended` is rung, finished, stopped or failed. A failed trial is the worst there can be."""
        worst = -math.inf if self.settings["larger_is_better"] else math.inf
        return {
            "ended": ended,
            "steps": step,
            "objective": worst if value is None else value,
            "reason": reason,
            "done": ended != "rung",
        }

    def stay(self, rundir: RunDir, rung: int | None) -> dict[str, object]:
        """One stay; a rung that an earlier stay has reached is not trained for again."""
        read_test = self.settings["read_test"]
        if rung is not None and rundir.is_finished:
            return {"ended": "rung", "step": rung, "reason": "rung"}
        job = TrainJob(str(rundir.folder), read_test=read_test, pause_at=rung, stop_file=self.settings["stop_file"])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                outcome = job()
                break
            except FolderInUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        gc.collect()
        ended = "finished" if outcome["finished"] else "rung" if outcome["reason"] == "rung" else "stopped"
        return outcome | {"ended": ended}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run folder has it."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the run goes on from its folder."""


class ObjectiveStopped(Exception):
    """The sweep is to stop, and the objective was not yet measured."""


def objective_of(rundir: RunDir, objective: str, step: int) -> float:
    """The validation score of the headline weights after `step` steps, as the run's journal has it."""
    config = rundir.read_config()
    for event in read_journal(rundir.log):
        if (
            event["event"] == "evaluate"
            and event["split"] == "validation"
            and event["step"] == step
            and event["weights"] == config.ema.headline
        ):
            return float(event[objective])
    raise UserError(f"{rundir.folder} has no {objective} of the validation images at step {step:,}")


def measure_distance(rundir: RunDir, against: list[str], stop_file: str) -> None:
    """Put the Fréchet distance on `cifar100_features` to the images of these splits into the run's archive.

    Of 2,000 samples drawn in 20 steps of DDIM, the same for all splits. Raises ObjectiveStopped when stop_file appears
    or a signal comes meanwhile; the archive is as before then.
    """
    from hpcvision import distributed
    from hpcvision.config import apply
    from hpcvision.training.generation import DrawingStopped
    from hpcvision.training.requests import WORK, Request, Work, images_to_draw

    config = rundir.read_config()
    asked = apply(config, {"sample.sampler": "ddim", "sample.steps": SAMPLING_STEPS, "sample.eta": 0.0})
    options = {
        "images": SAMPLES,
        "steps_grid": [SAMPLING_STEPS],
        "sets": 1,
        "against": against,
        "extractor": None,
        "seed": 0,
    }
    archive = str(rundir.results)
    weights = config.ema.headline
    request = Request("evaluate", archive, archive, asked.model_dump(mode="json"), [weights], options)
    rank = distributed.start(Place.from_environment(), rundir.folder)
    try:
        with (
            StopRequest(file=Path(stop_file)) as stop,
            Work(request, rank, images_to_draw(request), lambda: stop.code) as work,
        ):
            WORK[request.kind](work)
    except DrawingStopped:
        raise ObjectiveStopped from None
    finally:
        distributed.stop()


def known_distance(rundir: RunDir, split: str = "validation") -> float:
    """The distance in the run's archive; NaN when it is not there, as when the trial was killed before it was drawn."""
    from hpcvision.results.reader import read_scores

    name = f"cifar100_features_{split}_{rundir.read_config().ema.headline}_ddim_{SAMPLING_STEPS}"
    found = [score for key, score in read_scores(rundir.results).items() if key.startswith(name)]
    return float(found[0]["frechet"]) if found else math.nan


def last_step(rundir: RunDir) -> int:
    """The last step that the journal tells of."""
    return max((event.get("step", 0) for event in read_journal(rundir.log)), default=0)


def reason_of(rundir: RunDir, error: Exception) -> str:
    """Why a trial failed, in one line; the folder's FAILED.txt has all of it."""
    words = str(error).strip().splitlines() or [type(error).__name__]
    line = words[0] if isinstance(error, UserError) else f"{type(error).__name__}: {words[0]}"
    if not rundir.failure.exists():
        with contextlib.suppress(OSError):
            rundir.failure.write_text(f"rank 0: {line}\n")
    return line


@contextlib.contextmanager
def words_into(path: Path) -> Any:
    """What the run says goes into a file of its folder: Ray's own logs are removed with its folder."""
    with path.open("a") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        yield
