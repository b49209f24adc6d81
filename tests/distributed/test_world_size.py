"""The same run on 1, 2 and 4 processes: same losses, same scores, same weights up to rounding.

On a model without BatchNorm. With AdamW losses and scores are compared, not weights: it takes a real step on a gradient
that is zero up to rounding.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from real_processes import end, start_ranks

from hpcvision import data
from hpcvision.config import DataConfig, apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare
from hpcvision.rundir import RunDir

WORLD_SIZES = (1, 2, 4)
SPLIT_SIZES = (997, 500, 3, 1)  # odd, one batch exactly, and fewer images than processes

# One process group, in which each run folder is trained and splits of awkward sizes are evaluated.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from hpcvision import data, distributed
from hpcvision.config import apply
from hpcvision.rundir import RunDir
from hpcvision.training.loop import train
from hpcvision.training.tasks import Classify, Diffuse

place = distributed.Place.from_environment()
rank = distributed.start(place, Path(sys.argv[1]))
for folder in sys.argv[3:]:
    rundir = RunDir(Path(folder))
    train(rundir.read_config(), rundir, rank, distributed.StopRequest())

class Witness(torch.nn.Module):
    '''Remembers each image that it is shown by the sum of its pixels.'''
    seen = []
    def forward(self, images):
        sums = images.double().sum((1, 2, 3))
        self.seen.extend(sums.tolist())
        return torch.stack([sums * (k + 1) % 1 for k in range(20)], 1)

task = Classify(RunDir(Path(sys.argv[3])).read_config(), rank, "fp32")
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
}


@pytest.fixture(scope="module")
def worlds(jobs: dict[str, Path], workplace: Path) -> dict[int, tuple[dict[str, RunDir], list[dict[str, dict]]]]:
    """For each world size: the finished runs by optimiser, and each rank's report on its evaluations."""
    made = {}
    for world_size in WORLD_SIZES:
        base = load_job(str(jobs["plain"]))
        runs = workplace / f"world-{world_size}"
        rundirs = {name: prepare(apply(base, turned), runs) for name, turned in RUNS.items()}
        words = [",".join(map(str, SPLIT_SIZES)), *(rundir.folder for rundir in rundirs.values())]
        results = [end(process) for process in start_ranks(runs, world_size, program=PROGRAM, arguments=words)]
        assert [result.returncode for result in results] == [0] * world_size, results[-1].stderr
        made[world_size] = rundirs, [json.loads(result.stdout.splitlines()[-1]) for result in results]
    return made


def column(rundir: RunDir, name: str) -> np.ndarray:
    """One dataset of the archive."""
    with h5py.File(rundir.results) as file:
        return file[name][()]


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
@pytest.mark.parametrize("optimizer", RUNS)
def test_losses_of_20_steps_do_not_depend_on_the_number_of_processes(worlds, world_size: int, optimizer: str) -> None:
    one, many = (column(worlds[size][0][optimizer], "train/loss") for size in (1, world_size))
    assert len(one) == 20
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
@pytest.mark.parametrize("optimizer", RUNS)
def test_evaluations_do_not_depend_on_the_number_of_processes(worlds, world_size: int, optimizer: str) -> None:
    for name in ("loss", "accuracy"):
        one, many = (column(worlds[size][0][optimizer], f"evaluate/{name}") for size in (1, world_size))
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_sgd_weights_do_not_depend_on_the_number_of_processes(worlds, world_size: int, kind: str) -> None:
    archives = [h5py.File(worlds[size][0]["sgd"].results) for size in (1, world_size)]
    one, many = (archive[f"weights/{kind}"] for archive in archives)
    assert set(one) == set(many)
    for name in one:
        np.testing.assert_allclose(many[name][()], one[name][()], rtol=0, atol=1e-6, err_msg=name)


def test_training_moves_the_weights_far_more_than_the_tolerance(worlds) -> None:
    losses = column(worlds[1][0]["sgd"], "train/loss")
    assert np.ptp(losses) > 1e-2


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("size", SPLIT_SIZES)
def test_evaluation_shows_the_network_every_image_exactly_once(worlds, world_size: int, size: int) -> None:
    config = load_config(worlds)
    mean, std = (torch.tensor(values)[:, None, None] for values in data.statistics(config, **SHAPE))
    images = data.load(config, "validation", **SHAPE).images[:size]
    expected = ((images.float() / 255 - mean) / std).double().sum((1, 2, 3))
    seen = [value for report in worlds[world_size][1] for value in report[str(size)]["seen"]]
    np.testing.assert_allclose(sorted(seen), sorted(expected.tolist()), rtol=0, atol=1e-2)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_all_ranks_hold_the_same_scores(worlds, world_size: int) -> None:
    reports = worlds[world_size][1]
    for size in map(str, SPLIT_SIZES):
        assert all(report[size]["scores"] == reports[0][size]["scores"] for report in reports)
        assert all(report[size]["predictions"] == int(size) for report in reports)


SHAPE = {"image_size": 28, "num_classes": 20}


def load_config(worlds) -> DataConfig:
    """The data settings of the runs."""
    return worlds[1][0]["sgd"].read_config().data
