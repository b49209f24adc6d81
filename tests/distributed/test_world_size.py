"""The same run on 1, 2 and 4 processes: same losses, same scores, same weights up to rounding.

On a model without BatchNorm. With AdamW losses and scores are compared, not weights: it takes a real step on a gradient
that is zero up to rounding.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from real_processes import assert_same_run, end, events, ledger, start_ranks

from hpcvision import data
from hpcvision.config import DataConfig, apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare
from hpcvision.rundir import RunDir

WORLD_SIZES = (1, 2, 4)
SPLIT_SIZES = (997, 500, 3, 1)  # odd, one batch exactly, and fewer images than processes

# One process group, in which each run folder is trained, to the step where it is asked to stop or to the end, and in
# which splits of awkward sizes are evaluated.
PROGRAM = """
import json, signal, sys
from pathlib import Path
import torch
from hpcvision import data, distributed
from hpcvision.config import apply
from hpcvision.rundir import RunDir
from hpcvision.stopping import StopRequest
from hpcvision.training.bookkeeping import Bookkeeping
from hpcvision.training.loop import train
from hpcvision.training.tasks import Classify, Diffuse

place = distributed.Place.from_environment()
rank = distributed.start(place, Path(sys.argv[1]))
after_step = Bookkeeping.after_step
def after_step_with_a_stop(self, stop):
    stop.received = signal.SIGTERM if self.state.step == stop.at else 0
    return after_step(self, stop)

Bookkeeping.after_step = after_step_with_a_stop
for folder, at in json.loads(sys.argv[3]):
    rundir = RunDir(Path(folder))
    stop = StopRequest()
    stop.at = at
    train(rundir.read_config(), rundir, rank, stop)

class Witness(torch.nn.Module):
    '''Remembers each image that it is shown by the sum of its pixels.'''
    seen = []
    def forward(self, images):
        sums = images.double().sum((1, 2, 3))
        self.seen.extend(sums.tolist())
        return torch.stack([sums * (k + 1) % 1 for k in range(20)], 1)

task = Classify(rundir.read_config(), rank, "fp32")
whole = task.batches.split("validation")
report = {}
for size in map(int, sys.argv[2].split(",")):
    task.batches._splits["validation"] = data.Split(whole.images[:size], whole.labels[:size])
    Witness.seen.clear()
    evaluation = task.evaluate(Witness(), "validation")
    report[size] = {"seen": list(Witness.seen), "scores": evaluation.scores, "predictions": len(evaluation.predictions)}
print(json.dumps(report))
distributed.stop()
"""

RUNS = {
    "sgd": {},
    "adamw": {"optim.optimizer": "adamw", "optim.learning_rate": 1e-3, "optim.weight_decay": 1e-2},
    "muon": {"optim.optimizer": "muon", "optim.muon_learning_rate": 2e-3},
}
# Muon computes in bfloat16, so a gradient's last bit moves a step by up to 1 %.
BOUNDS = {"sgd": 1e-6, "adamw": 1e-6, "muon": 1e-3}


STOP = 10  # the step after which some runs are stopped; they go on from there


@dataclass(frozen=True)
class World:
    """What one number of processes made."""

    whole: dict[str, RunDir]
    """By optimiser, and one with BatchNorm: trained in one go."""
    taken_over: dict[str, RunDir]
    """As above: trained from step 10, until which 2 processes had come."""
    interrupted: dict[str, RunDir]
    """As above: stopped at step 10, and gone on with."""
    reports: list[dict[str, dict]]
    """Of each rank on its evaluations."""
    said: str
    """Standard error of rank 0."""


Worlds = dict[int, World]


@pytest.fixture(scope="module")
def worlds(jobs: dict[str, Path], workplace: Path) -> Worlds:
    """By number of processes."""
    base = load_job(str(jobs["plain"]))
    mixed = {"task.cutmix_probability": 0.5}
    tiny = apply(load_job(str(jobs["tiny"])), {"train.steps": 20, "cadence.evaluate_every": 10} | mixed)
    configs = {"batch_norm": tiny} | {name: apply(base, turned) for name, turned in RUNS.items()}
    halves: dict[str, RunDir] = {}
    made = {}
    for size in (2, 1, 4):
        runs = workplace / f"world-{size}"
        whole, interrupted = (
            {name: prepare(config, runs / kind) for name, config in configs.items()}
            for kind in ("whole", "interrupted")
        )
        taken_over = {name: RunDir(runs / "taken over" / half.folder.name) for name, half in halves.items()}
        for name, half in halves.items():
            shutil.copytree(half.folder, taken_over[name].folder)
        work = [(rundir, None) for group in (taken_over, whole) for rundir in group.values()]
        work += [(rundir, at) for rundir in interrupted.values() for at in (STOP, None)]
        if size == 2:
            halves = {name: prepare(config, runs / "half") for name, config in configs.items()}
            work = [(rundir, STOP) for rundir in halves.values()] + work
        words = [",".join(map(str, SPLIT_SIZES)), json.dumps([(str(rundir.folder), at) for rundir, at in work])]
        results = [end(process) for process in start_ranks(runs, size, program=PROGRAM, arguments=words)]
        assert [result.returncode for result in results] == [0] * size, results[-1].stderr
        reports = [json.loads(result.stdout.splitlines()[-1]) for result in results]
        made[size] = World(whole, taken_over, interrupted, reports, results[0].stderr)
    return made


def column(rundir: RunDir, name: str) -> np.ndarray:
    """One dataset of the archive."""
    with h5py.File(rundir.results) as file:
        return file[name][()]


def weights(rundir: RunDir) -> dict[str, np.ndarray]:
    """Raw and averaged weights of the archive."""
    with h5py.File(rundir.results) as file:
        return {f"{kind}/{name}": item[()] for kind, group in file["weights"].items() for name, item in group.items()}


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
@pytest.mark.parametrize("optimizer", RUNS)
def test_losses_of_20_steps_do_not_depend_on_the_number_of_processes(
    worlds: Worlds, world_size: int, optimizer: str
) -> None:
    one, many = (column(worlds[size].whole[optimizer], "train/loss") for size in (1, world_size))
    assert len(one) == 20
    np.testing.assert_allclose(many, one, rtol=0, atol=BOUNDS[optimizer])


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
@pytest.mark.parametrize("optimizer", RUNS)
def test_evaluations_do_not_depend_on_the_number_of_processes(worlds: Worlds, world_size: int, optimizer: str) -> None:
    for name in ("loss", "accuracy"):
        one, many = (column(worlds[size].whole[optimizer], f"evaluate/{name}") for size in (1, world_size))
        np.testing.assert_allclose(many, one, rtol=0, atol=BOUNDS[optimizer])


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_sgd_weights_do_not_depend_on_the_number_of_processes(worlds: Worlds, world_size: int) -> None:
    one, many = (weights(worlds[size].whole["sgd"]) for size in (1, world_size))
    assert set(one) == set(many)
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("optimizer", RUNS)
def test_a_run_that_goes_on_with_another_number_of_processes_stays_within_the_same_bounds(
    worlds: Worlds, world_size: int, optimizer: str
) -> None:
    one, changed = worlds[1].whole[optimizer], worlds[world_size].taken_over[optimizer]
    assert [row["world_size"] for row in ledger(changed.folder)] == [2, world_size]
    assert [row["to_step"] for row in ledger(changed.folder)] == [STOP, 20]
    for name in ("train/step", "train/loss", "evaluate/loss", "evaluate/accuracy"):
        np.testing.assert_allclose(column(changed, name), column(one, name), rtol=0, atol=BOUNDS[optimizer])
    if optimizer == "sgd":
        for name in weights(one):
            np.testing.assert_allclose(weights(changed)[name], weights(one)[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_another_number_of_processes_is_told_and_the_same_is_not(worlds: Worlds, world_size: int) -> None:
    lines = [line for line in worlds[world_size].said.splitlines() if line.startswith("going on with")]
    assert len(lines) == len(worlds[world_size].taken_over)
    assert all(line.startswith(f"going on with {world_size} process(es) after 2: ") for line in lines)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("kind", ["batch_norm", *RUNS])
def test_a_run_that_goes_on_with_as_many_processes_equals_the_undisturbed_run_bit_for_bit(
    worlds: Worlds, world_size: int, kind: str
) -> None:
    interrupted = worlds[world_size].interrupted[kind].folder
    assert [event["step"] for event in events(interrupted, "stop")] == [STOP, 20]
    assert_same_run(interrupted, worlds[world_size].whole[kind].folder)


def test_training_moves_the_weights_far_more_than_the_tolerance(worlds: Worlds) -> None:
    losses = column(worlds[1].whole["sgd"], "train/loss")
    assert np.ptp(losses) > 1e-2


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("size", SPLIT_SIZES)
def test_evaluation_shows_the_network_every_image_exactly_once(worlds: Worlds, world_size: int, size: int) -> None:
    config = load_config(worlds)
    mean, std = (torch.tensor(values)[:, None, None] for values in data.statistics(config, **SHAPE))
    images = data.load(config, "validation", **SHAPE).images[:size]
    expected = ((images.float() / 255 - mean) / std).double().sum((1, 2, 3))
    seen = [value for report in worlds[world_size].reports for value in report[str(size)]["seen"]]
    np.testing.assert_allclose(sorted(seen), sorted(expected.tolist()), rtol=0, atol=1e-2)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_all_ranks_hold_the_same_scores(worlds: Worlds, world_size: int) -> None:
    reports = worlds[world_size].reports
    for size in map(str, SPLIT_SIZES):
        assert all(report[size]["scores"] == reports[0][size]["scores"] for report in reports)
        assert all(report[size]["predictions"] == int(size) for report in reports)


SHAPE = {"image_size": 28, "num_classes": 20}


def load_config(worlds: Worlds) -> DataConfig:
    """The data settings of the runs."""
    return worlds[1].whole["sgd"].read_config().data
