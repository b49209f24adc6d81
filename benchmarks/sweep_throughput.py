"""Trials an hour of a sweep and of a plain Ray Tune script with the same work: `python benchmarks/sweep_throughput.py`.

16 trials of 200 steps of `addnist_cnn` at batch 64 over learning rates, a core each, without averaged weights and
without a winner; AddNIST where $HPCVISION_DATA holds it prepared, else drawn images. Ours: `hpcvision sweep`, with all
that belongs to it: checkpoints, TensorBoard, an archive for every run, sweep.h5. Plain: a function that is handed to
`tune.Tuner`, which imports torch, reads the images, trains in a loop and reports the validation loss; for equal losses
it takes from hpcvision what decides them (images, batches, augmentation, first weights, learning rates), and it leaves
nothing behind. Whole commands in turns, from their start to their end. `seconds_to_first_step`: from the start of a
command until any trial has made its first step, in a round of its own, for which ours writes a line for every step.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path

import measuring

DATA = Path(os.environ.get("HPCVISION_DATA", "data")).absolute()
SOURCE = "addnist" if any((DATA / "prepared").glob("addnist*")) else "synthetic"
TRIALS, STEPS = 16, 200
FIXED = {"data.source": SOURCE, "train.steps": STEPS, "optim.warmup_steps": 20, "ema.beta": 0}
RATES = [round(1e-3 * 8 ** (number / (TRIALS - 1)), 6) for number in range(TRIALS)]

SWEEP = f"""
from ray import tune

BASE = "addnist_cnn"
FIXED = {FIXED | {"cadence.log_every": 50}}
SPACE = {{"optim.learning_rate": tune.grid_search({RATES})}}
OBJECTIVE = "loss"
TOP = 0
"""

PLAIN = f"""
import json
import sys
from pathlib import Path

import ray
from ray import tune


def train(settings):
    import torch
    from torch.nn import functional

    from hpcvision.config import apply
    from hpcvision.config.catalogue import load_job
    from hpcvision.data.augment import normalise
    from hpcvision.distributed import Place, Rank
    from hpcvision.models import build_model
    from hpcvision.seeding import stream_seed
    from hpcvision.training.batches import Batches
    from hpcvision.training.optim import learning_rate

    torch.set_num_threads(1)
    config = apply(load_job("addnist_cnn"), {FIXED} | settings)
    batches = Batches(config, Rank(Place(), torch.device("cpu")))
    model = build_model(config.model, seed=config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=config.optim.betas, weight_decay=0, fused=True)
    for step in range({STEPS}):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, step, {STEPS})
        torch.manual_seed(stream_seed(config.seed, "dropout", step, 0))
        images, labels = batches.local(batches.draw(step))
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step == 0:
            Path(FOLDER, "first_step").touch()
    model.eval()
    images, labels = batches.split("validation")
    total = 0.0
    with torch.no_grad():
        for chosen in torch.arange(len(labels)).split(1000):
            logits = model(normalise(images[chosen], mean=batches.mean, std=batches.std))
            total += functional.cross_entropy(logits, labels[chosen], reduction="sum").item()
    tune.report({{"loss": total / len(labels)}})


FOLDER = sys.argv[1]
ray.init(address="local", include_dashboard=False, log_to_driver=False)
found = tune.Tuner(
    tune.with_resources(train, {{"cpu": 1}}),
    param_space={{"optim.learning_rate": tune.grid_search({RATES})}},
    tune_config=tune.TuneConfig(metric="loss", mode="min"),
    run_config=tune.RunConfig(storage_path=FOLDER, name="plain", verbose=0),
).fit()
losses = {{result.config["optim.learning_rate"]: result.metrics["loss"] for result in found}}
Path(FOLDER, "losses.json").write_text(json.dumps(list(losses.items())))
"""


class Case(ABC):
    """A command that does all trials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[float] = []
        self.round = 0

    @abstractmethod
    def command(self) -> list[str]:
        """What to start; a new folder each time."""

    @abstractmethod
    def first_step_is_done(self) -> bool:
        """True when any trial has made a step."""

    @abstractmethod
    def read_losses(self) -> list[float]:
        """Validation losses of the trials, in the order of their learning rates."""

    @property
    def runs(self) -> Path:
        """Of this round."""
        return self.folder / str(self.round)

    def __call__(self, *more: str) -> float:
        """Run it; seconds until the first step."""
        self.round += 1
        self.runs.mkdir(parents=True)
        started, first = time.perf_counter(), 0.0
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen([*self.command(), *more], cwd=self.folder, stdout=log, stderr=log)
            while process.poll() is None:
                if more and not first and self.first_step_is_done():
                    first = time.perf_counter() - started
                time.sleep(0.02)
        assert process.returncode == 0, (self.folder / "log").read_text()
        self.losses = self.read_losses()
        return first


class Ours(Case):
    """`hpcvision sweep`."""

    def command(self) -> list[str]:
        (self.folder / "rates.py").write_text(SWEEP)
        return [sys.executable, "-m", "hpcvision", "sweep", "rates.py", "--runs", str(self.runs)]

    def first_step_is_done(self) -> bool:
        return any('"train"' in path.read_text() for path in self.runs.glob("*/*/log.jsonl"))

    def read_losses(self) -> list[float]:
        losses = {}
        for path in self.runs.glob("*/*/config.json"):
            events = map(json.loads, (path.parent / "log.jsonl").read_text().splitlines())
            (loss,) = {e["loss"] for e in events if e["event"] == "evaluate" and (e["split"], e["weights"]) == LAST}
            losses[json.loads(path.read_text())["optim"]["learning_rate"]] = loss
        return [losses[rate] for rate in RATES]


LAST = ("validation", "raw")


class Plain(Case):
    """The plain script."""

    def command(self) -> list[str]:
        (self.folder / "plain.py").write_text(PLAIN)
        return [sys.executable, "plain.py", str(self.runs)]

    def first_step_is_done(self) -> bool:
        return (self.runs / "first_step").exists()

    def read_losses(self) -> list[float]:
        losses = dict(json.loads((self.runs / "losses.json").read_text()))
        return [losses[rate] for rate in RATES]


def main() -> None:
    arguments = measuring.parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=3, help="turns of each command")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = {"hpcvision sweep": Ours(Path(folder) / "ours"), "plain Ray Tune": Plain(Path(folder) / "plain")}
        for case in cases.values():
            case.folder.mkdir()
        seconds = measuring.interleave(cases, rounds=chosen.rounds, warm_up=0)
        first = {
            "hpcvision sweep": cases["hpcvision sweep"]("cadence.log_every=1"),
            "plain Ray Tune": cases["plain Ray Tune"]("-"),
        }
        apart = max(abs(a - b) for a, b in zip(*(case.losses for case in cases.values()), strict=True))
    rows = [
        {
            "case": name,
            "seconds": statistics.median(times),
            "trials_an_hour": 3600 * TRIALS / statistics.median(times),
            "seconds_to_first_step": first[name],
            "mean_loss": sum(cases[name].losses) / TRIALS,
        }
        for name, times in seconds.items()
    ]
    measuring.report(
        f"{TRIALS} trials of {STEPS} steps of addnist_cnn on {SOURCE}",
        rows,
        ratios={"ratio_throughput": measuring.ratio(seconds["plain Ray Tune"], seconds["hpcvision sweep"])},
        json_file=chosen.json,
        largest_difference_of_losses=apart,
        rounds=seconds,
    )
    print(f"largest difference between the final losses of the same trial: {apart:.2e}")


if __name__ == "__main__":
    main()
