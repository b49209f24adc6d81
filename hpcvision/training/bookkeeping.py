"""What happens around the steps of a run: curves, evaluations, checkpoints, the archive, and agreeing to stop."""

import math
import socket
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from hpcvision import data, provenance
from hpcvision.config import CAPS, RunConfig
from hpcvision.distributed import Rank
from hpcvision.errors import TrainingStopped
from hpcvision.models import source_of_model
from hpcvision.results.record import Record
from hpcvision.rundir import RunDir, remove_half_written
from hpcvision.stopping import StopRequest
from hpcvision.training import checkpoint
from hpcvision.training import state as states
from hpcvision.training.artefacts import Artefacts
from hpcvision.training.batches import HELD
from hpcvision.training.board import Board
from hpcvision.training.journal import Journal, ledger
from hpcvision.training.optim import learning_rate
from hpcvision.training.progress import Drawn, progress_of_run
from hpcvision.training.tasks import Evaluation, Task

# The ranks agree to stop about twice a second: a queue gives 30 seconds between SIGTERM and SIGKILL, and on a GPU each
# agreement is one of the few moments at which the host waits for the device.
AGREE_MILLISECONDS = 500
AGREE_AT_MOST_EVERY = 1000  # steps

Weights = dict[str, dict[str, np.ndarray[Any, np.dtype[Any]]]]


class Bookkeeping:
    """The files and the cadence around the steps."""

    def __init__(
        self, config: RunConfig, rundir: RunDir, rank: Rank, task: Task, state: states.State, parameters: int
    ) -> None:
        self.config, self.rundir, self.rank, self.task, self.state = config, rundir, rank, task, state
        self.parameters = parameters
        self.shape = {"image_size": config.model.image_size, "num_classes": config.model.num_classes}
        self.class_names = data.class_names(config.data, **self.shape)
        self.saved_step, self.seconds_at_point, self.numbers = state.step, state.seconds, ""
        self.agreed_at, self.step_at_agreement, self.next_agreement = time.monotonic(), state.step, state.step + 1
        self.progress = progress_of_run(config, rundir, rank, first_step=state.step)
        self.scored_digest: dict[str, str] = {}
        self.evaluated: dict[tuple[str, int, str], Evaluation] = {}  # the last, by weights, step and split
        self.journal: Journal | None = None
        self.board: Board | None = None

    def __enter__(self) -> "Bookkeeping":
        config, rank, step = self.config, self.rank, self.state.step
        # All that loading needs for a moment is needed before the first step, not on top of its memory.
        for split in HELD:
            self.task.batches.split(split)
        if rank.is_main:
            self.provenance = provenance.collect() | {
                "precision": self.state.precision,
                "processes": rank.world_size,
                "device": rank.device.type,
            }
            remove_half_written(self.rundir)
            self.journal = Journal(self.rundir, resume_step=step)
            self.journal.add(
                "start",
                job_id=rank.place.job_id,
                restart=rank.place.restart,
                world_size=rank.world_size,
                host=socket.gethostname(),
                from_step=step,
                precision=self.state.precision,
                threads=torch.get_num_threads(),
                commit=provenance.commit_in_words(self.provenance),
                code=self.provenance["code"],
            )
            self.board = Board(self.rundir, first_step=step, introduce=self.introduce)
        self.progress.__enter__()
        is_capped = config.track == "capped"
        cap = f"cap {CAPS[config.task.kind].parameters:,}" if is_capped else "auxiliary: no cap, no claim"
        self.progress.say(f"{config.folder_name}: {config.model.kind}, {self.parameters:,} parameters ({cap})")
        self.progress.say(
            f"{data.describe(config.data, **self.shape)}; {rank.world_size} process(es) on {rank.device.type}, "
            f"{torch.get_num_threads()} thread(s) each, {self.state.precision}; "
            + (f"going on from step {step:,}" if step else f"{config.train.steps:,} steps")
        )
        return self

    def introduce(self, board: Board) -> None:
        """The settings and a grid of augmented inputs."""
        board.settings(self.config, self.task.metric_names)
        board.images("inputs", self.task.inputs(0, 64), 0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.progress.__exit__(None, None, None)
        if isinstance(error, OSError):  # what could not be written then cannot be written now
            return
        if self.journal:
            self.journal.__exit__(None, None, None)
        if self.board:
            self.board.close()

    def after_step(self, stop: StopRequest) -> int:
        """Log, evaluate, save and agree, whatever is due after this step; the code of an agreed stop, or 0."""
        step, steps, cadence = self.state.step, self.config.train.steps, self.config.cadence
        is_last, pause = step == steps, stop.pause(step)
        saves = is_last or pause or step % cadence.checkpoint_every == 0
        evaluates = is_last or pause or step % cadence.evaluate_every == 0
        code = self.agree(stop) if step >= self.next_agreement or saves or evaluates else 0
        if is_last or step % cadence.log_every == 0:
            self.log_point()
        if self.board:
            self.board.begin()
        if saves or code:  # before the evaluation: a queue that wants the machine back does not wait for it
            self.save()
        if evaluates:
            self.evaluate()
            self.preview()
        self.progress.advance(step, self.numbers)
        # A stop that comes with the last step comes too late: what is left is shorter than a restart.
        return 0 if is_last else code or pause

    def agree(self, stop: StopRequest) -> int:
        """The same stop code on all ranks; ends all of them when any had a non-finite loss.

        A step with a finite loss can ruin the weights all the same, and a checkpoint of those would be no good one.
        """
        self.settle()
        norm = torch.nn.utils.get_total_norm([weight.detach() for weight in self.state.model.parameters()])
        seconds = (time.monotonic() - self.agreed_at) / max(1, self.state.step - self.step_at_agreement)
        votes = torch.tensor([stop.code, math.ceil(1000 * seconds), 0, 0], device=self.rank.device)
        votes[2], votes[3] = -self.state.first_bad_step, -torch.where(norm.isfinite(), states.NEVER, self.state.step)
        code, slowest, *bad = (int(value) for value in self.rank.max(votes).tolist())
        bad_loss, bad_weights = -bad[0], -bad[1]
        self.agreed_at, self.step_at_agreement = time.monotonic(), self.state.step
        self.next_agreement = self.state.step + min(AGREE_AT_MOST_EVERY, max(1, AGREE_MILLISECONDS // max(1, slowest)))
        if min(bad_loss, bad_weights) != states.NEVER:
            if self.saved_step == bad_loss - 1:  # made of the very weights whose loss is not finite
                kept = checkpoint.drop_newest(self.rundir) if self.rank.is_main else 0
                self.saved_step = int(self.rank.max(torch.tensor(kept, device=self.rank.device)))
            raise TrainingStopped(
                f"the loss or a weight is not finite at step {min(bad_loss, bad_weights):,}; {self.what_is_kept()}; "
                "try a smaller optim.learning_rate or optim.gradient_clip=1"
            )
        return code

    def what_is_kept(self) -> str:
        """Words about the last good checkpoint."""
        kept = f"the last good checkpoint is of step {self.saved_step:,}" if self.saved_step else "no checkpoint yet"
        return f"{kept} in {self.rundir.folder}"

    def settle(self) -> None:
        """Wait for the device, which on CUDA runs behind the host; the wait is training time."""
        if self.rank.device.type == "cuda":
            started = time.perf_counter()
            torch.cuda.synchronize()
            self.state.seconds += time.perf_counter() - started

    def log_point(self) -> None:
        """One point of the training curve: means over all ranks since the last point."""
        self.settle()
        *totals, count = self.rank.sum(self.state.sums.clone()).tolist()
        self.state.sums.zero_()
        seconds = self.state.seconds - self.seconds_at_point
        self.seconds_at_point = self.state.seconds
        values = dict(zip(("loss", *self.task.metric_names), (total / count for total in totals), strict=True))
        rate = learning_rate(self.config.optim, self.state.step - 1, self.config.train.steps)
        speed = count / seconds if seconds > 0 else math.nan
        self.numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items()) + f"  {speed:,.0f} images/s"
        timing = {"learning_rate": rate, "seconds": self.state.seconds, "images_per_second": speed}
        if self.journal and self.board:
            self.journal.add("train", step=self.state.step, **values, **timing)
            self.board.scalars(self.state.step, {f"train/{key}": value for key, value in (values | timing).items()})

    def evaluate(self, *, skip: int = 0) -> None:
        """Raw and averaged weights, but the first `skip`, on the validation split; nothing when that is trained on."""
        if self.config.data.train_on == "train+validation":
            return
        self.evaluated.clear()
        for kind in states.kinds(self.state)[skip:]:
            evaluation = self.task.evaluate(states.load_for_evaluation(self.state, kind, self.rank), "validation")
            self.evaluated[kind, self.state.step, "validation"], scores = evaluation, evaluation.scores
            text = "  ".join(f"{name} {scores[name]:.4f}" for name in ("loss", "accuracy") if name in scores)
            self.progress.say(f"step {self.state.step:,}  validation ({kind})  {text}")
            if self.journal and self.board:
                self.journal.add("evaluate", step=self.state.step, split="validation", weights=kind, **scores)
                group = "validation" if kind == self.config.ema.headline else f"validation_{kind}"
                self.board.scalars(self.state.step, {f"{group}/{name}": scores[name] for name in scores})

    def preview(self) -> None:
        """What a generator draws by now from the same noise every time, in TensorBoard."""
        images = self.task.preview(lambda: states.load_for_evaluation(self.state, self.config.ema.headline, self.rank))
        if images is not None and self.board:
            self.board.pictures("samples/from_the_same_noise", images, self.state.step)

    def evaluate_if_missing(self, stop: StopRequest) -> None:
        """Make up for what is missing of this very step's evaluation, when the last stay ended amid or before it."""
        step, every = self.state.step, self.config.cadence.evaluate_every
        if not step or (step % every and step != self.config.train.steps and not stop.pause(step)):
            return
        events = self.journal.events if self.journal else []
        done = sum(event["event"] == "evaluate" and event["step"] == step for event in events)
        self.evaluate(skip=int(self.rank.max(torch.tensor(done, device=self.rank.device))))

    def save(self) -> None:
        """Write the checkpoint, and the archive as it stands."""
        from hpcvision.results.writer import write_results  # h5py, 0.04 s that no first step waits for

        content = states.stored(self.state, self.config, self.rank)
        weights = self.weights()
        if self.rank.is_main and self.journal:
            self.journal.sync()
            checkpoint.save(self.rundir, content)
            self.saved_step = self.state.step
            write_results(self.rundir.results, self.record(weights, finished=False))
        self.saved_step = self.state.step

    def weights(self) -> Weights:
        """All sets of weights as arrays; call it on every rank."""
        return {
            kind: {
                name: tensor.detach().cpu().contiguous().numpy()
                for name, tensor in states.weights_of(self.state, kind, self.rank).items()
            }
            for kind in states.kinds(self.state)
        }

    def record(
        self, weights: Weights, *, finished: bool, artefacts: Artefacts | None = None, split: str = "test"
    ) -> Record:
        """What goes into results.h5 now."""
        assert self.journal is not None, "only the main rank writes"
        config, events, artefacts = self.config, self.journal.events, artefacts or Artefacts()
        return Record(
            config=config.model_dump(mode="json"),
            name=config.run_name,
            fingerprint=config.fingerprint,
            provenance=self.provenance,
            caps=CAPS[config.task.kind]._asdict(),
            parameters=self.parameters,
            steps=self.state.step,
            finished=finished,
            data=self.task.batches.described | self.scored_digest,
            train=[event for event in events if event["event"] == "train"],
            evaluate=[event for event in events if event["event"] == "evaluate"],
            ledger=ledger(events),
            test_reads=sum(event["event"] == "test_read" for event in events),
            weights=weights,
            scores=artefacts.scores,
            scored_split=split,
            confusion=artefacts.confusion,
            class_names=self.class_names,
            source=source_of_model(config.model),
            samples=artefacts.samples,
            interpolations=artefacts.interpolations,
            strips=artefacts.strips,
        )

    def interrupted(self, reason: str) -> states.Outcome:
        """The end of a stay before the last step; everything is saved already."""
        if self.journal:
            self.journal.add("stop", step=self.state.step, reason=reason)
        self.progress.say(f"stopped at step {self.state.step:,} ({reason}); the same command goes on from here")
        return states.Outcome(finished=False, step=self.state.step, reason=reason, scores={})

    def finish(self, split: data.SplitName) -> states.Outcome:
        """Score the last step on `split`, the test split once and for all, and write the finished archive."""
        from hpcvision.results.writer import write_results

        state, config = self.state, self.config
        kinds = sorted(states.kinds(state), key=lambda kind: kind == config.ema.headline)  # plain scores are the last's
        artefacts, scores = Artefacts(), dict[str, float]()
        drawn = Drawn(self.progress, self.task.images_to_draw, self.rank.world_size, step=state.step)
        for kind in kinds:  # before the test split is read: a run that is stopped amid its pictures comes back here
            made = self.task.pictures(partial(states.load_for_evaluation, state, kind, self.rank), kind, drawn)
            artefacts = replace(made, samples=artefacts.samples | made.samples)
        if self.journal and split == "test":
            self.journal.add("test_read", step=state.step)
        for kind in kinds:
            model = states.load_for_evaluation(state, kind, self.rank)
            evaluation = self.evaluated.get((kind, state.step, split)) or self.task.evaluate(model, split)
            if self.journal and split == "test":
                self.journal.add("evaluate", step=state.step, split=split, weights=kind, **evaluation.scores)
            scores |= {f"{name}_{kind}": value for name, value in evaluation.scores.items()}
            artefacts.scores, artefacts.confusion = evaluation.scores | scores, self.task.confusion(evaluation)
        weights = self.weights()
        if self.journal and self.board:
            for name, samples in artefacts.samples.items():
                self.board.pictures(f"samples/{name}", samples.images, state.step)
            self.board.scalars(state.step, {f"final_{split}/{name}": score for name, score in artefacts.scores.items()})
            self.scored_digest = {f"{split}_sha256": self.task.batches.digest(split)}
            self.journal.add("stop", step=state.step, reason="finished")
            write_results(self.rundir.results, self.record(weights, finished=True, artefacts=artefacts, split=split))
            self.journal.add("finished", step=state.step)
        return states.Outcome(finished=True, step=state.step, reason="finished", scores=artefacts.scores)
