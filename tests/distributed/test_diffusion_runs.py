"""Diffusion runs that are stopped, killed, shared out differently or hopeless: same weights and images, or one line.

HPCVISION_REPEATS sets the number of stops and kills, HPCVISION_SEED their moments.
"""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from real_processes import (
    COUNTED,
    RANK,
    REPEATS,
    SEED,
    assert_readable,
    assert_same_run,
    complaint,
    end,
    events,
    exact_content,
    hpcvision,
    ledger,
    only_run,
    refusal,
    start_ranks,
    wait_until,
)
from test_world_size import PROGRAM, STOP, column, weights

from hpcvision.config import RunConfig, apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare
from hpcvision.models import build_model
from hpcvision.rundir import RunDir
from hpcvision.training import checkpoint

STEPS = 24
TINY = {
    "data.source": "synthetic",
    "model.width": 0.1,
    "model.image_size": 16,
    "model.num_classes": 10,
    "task.label_dropout": 0.3,
    "train.steps": STEPS,
    "train.global_batch_size": 8,
    "optim.warmup_steps": 4,
    "ema.beta": 0.9,
    "sample.steps": 4,
    # Of four ranks, one has nothing to draw.
    "sample.images": 3,
    "sample.interpolation_pairs": 1,
    "sample.interpolation_points": 3,
    # Some checkpoints fall between two points of the curve.
    "cadence.log_every": 2,
    "cadence.evaluate_every": 12,
    "cadence.checkpoint_every": 3,
}
EDM = {"model.kind": "edm_unet", "task.noise_schedule": "edm", "task.prediction": "edm", "sample.sampler": "heun"}
KINDS = {"epsilon": {}, "edm": EDM}

# Enough that each of four ranks evaluates a batch of them.
FEW_IMAGES = """
from hpcvision.data import synthetic
from hpcvision.training import tasks
synthetic.SIZES, tasks.EVALUATION_BATCH = dict.fromkeys(synthetic.SIZES, 26), 7
"""

# The samples of both sets of weights are drawn by then, and the test split is not read.
DIES_DRAWING = """
import os, signal
from hpcvision.training.artefacts import Gallery
Gallery.interpolations = lambda self: os.kill(os.getpid(), signal.SIGKILL)
"""


def tiny(**changes: Any) -> RunConfig:
    """The small generator, smaller still."""
    return apply(load_job("cifar100_ddpm_small"), TINY | changes)


def pictures(folder: Path) -> dict[str, Any]:
    """Everything in and on the groups of /samples, /interpolations and /strips, by path."""
    found: dict[str, Any] = {}
    with h5py.File(folder / "results.h5") as file:
        for group in (group for kind in ("samples", "interpolations", "strips") for group in file[kind].values()):
            found |= {item.name: item[()] for item in group.values()}
            found |= {f"{group.name}@{name}": value for name, value in group.attrs.items()}
    return found


# --- stopped and killed ---


def left_alone(folder: Path) -> Path:
    """The folder, when two processes have trained in it to the end."""
    first, second = (end(rank) for rank in start_ranks(folder, 2, program=FEW_IMAGES + RANK))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> dict[str, Path]:
    """The folders of finished runs."""
    rundirs = {kind: prepare(tiny(**changes), workplace / f"alone-{kind}") for kind, changes in KINDS.items()}
    return {kind: left_alone(rundir.folder) for kind, rundir in rundirs.items()}


def disturb(folder: Path, number: signal.Signals, moments: random.Random) -> bool:
    """SIGKILL to both ranks, one time in five while they start, or SIGTERM to one; False when the run ended before."""
    stays = len(events(folder, "start"))
    ranks = start_ranks(folder, 2, program=FEW_IMAGES + RANK)

    def reached(event: str, count: int = 1, step: float = 0) -> bool:
        found = sum(point.get("step", 0) >= step for point in events(folder, event))
        return found >= count or all(rank.poll() is not None for rank in ranks)

    if number == signal.SIGKILL and moments.random() < 0.2:
        time.sleep(moments.uniform(0, 4))
    else:
        wait_until(lambda: reached("start", stays + 1), f"stay {stays + 1} to start")
        points = events(folder, "train")
        aim = moments.uniform(points[-1]["step"] if points else 0, STEPS)
        wait_until(lambda: reached("train", step=aim - 2), f"step {aim:.0f}")
        time.sleep(moments.uniform(0, 1))
    for rank in ranks if number == signal.SIGKILL else [moments.choice(ranks)]:
        rank.send_signal(number)
    results = [end(rank) for rank in ranks]
    is_finished = RunDir(folder).is_finished
    if number == signal.SIGTERM and not is_finished:
        assert [result.returncode for result in results] == [0, 0], results[0].stderr
        assert events(folder, "stop")[-1]["reason"] == "SIGTERM"
    return not is_finished


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("epsilon", signal.SIGTERM, REPEATS), marks=pytest.mark.long),
        ("epsilon", signal.SIGKILL, REPEATS),
        pytest.param(("edm", signal.SIGKILL, 1), marks=pytest.mark.long),
    ],
    ids=lambda param: f"{param[0]}-{param[1].name}",
)
def disturbed(request: pytest.FixtureRequest, workplace: Path) -> tuple[str, list[Path]]:
    """A run that comes to its end too early makes place for a new one; one is also killed while it draws samples."""
    kind, number, times = request.param
    moments = random.Random(f"{SEED} {kind} {number.name}")
    COUNTED.append(f"{number.name} to a diffusion run ({kind}), at {times} random moments; HPCVISION_SEED={SEED}")
    folders, hits = [], 0
    while hits < times:
        folders.append(prepare(tiny(**KINDS[kind]), workplace / f"{kind}-{number.name}-{len(folders)}").folder)
        while hits < times and disturb(folders[-1], number, moments):
            hits += 1
            assert_readable(folders[-1])
    if (kind, number) == ("epsilon", signal.SIGKILL):
        reads = len(events(folders[-1], "test_read"))
        results = [end(rank) for rank in start_ranks(folders[-1], 2, program=DIES_DRAWING + FEW_IMAGES + RANK)]
        assert all(result.returncode for result in results)
        assert len(events(folders[-1], "test_read")) == reads
        assert_readable(folders[-1])
    left_alone(folders[-1])
    return kind, folders


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compared_holds_both_sets_of_weights_and_all_kinds_of_pictures(undisturbed, kind: str) -> None:
    content, drawn = exact_content(undisturbed[kind]), pictures(undisturbed[kind])
    assert {name.split("/")[1] for name in content if name.startswith("weights/")} == {"raw", "ema"}
    assert {"train/loss", "evaluate/loss", "scores/test@loss_raw", "scores/test@loss_ema"} <= set(content)
    kinds = {"samples/best", "samples/random", "samples/random_raw", "interpolations/slerp", "interpolations/linear"}
    assert {f"/{name}/images" for name in kinds | {"strips/denoising"}} <= set(drawn)
    assert (drawn["/samples/random/images"] != drawn["/samples/random_raw/images"]).any()


def test_a_disturbed_diffusion_run_equals_the_undisturbed_run_bit_for_bit(disturbed, undisturbed) -> None:
    kind, folders = disturbed
    for folder in folders:
        assert_same_run(folder, undisturbed[kind])
        np.testing.assert_equal(pictures(folder), pictures(undisturbed[kind]))


def test_the_ledger_of_a_disturbed_diffusion_run_counts_every_step_once(disturbed) -> None:
    for folder in disturbed[1]:
        bounds = [row["from_step"] for row in ledger(folder)] + [STEPS]
        assert [row["to_step"] for row in ledger(folder)] == bounds[1:]
        assert bounds == [0, *sorted(bounds[1:])]


# --- other numbers of processes ---

# The first half trains in each run folder, to the step where it is asked to stop or to the end.
TRAINS_ALL = FEW_IMAGES + PROGRAM.partition("class Witness")[0] + "distributed.stop()"

SHORT = {"train.steps": 20, "train.precision": "fp32", "cadence.log_every": 1, "cadence.evaluate_every": STOP}
OPTIMIZERS = {
    "sgd": SHORT | {"optim.optimizer": "sgd", "optim.learning_rate": 0.005},
    "adamw": SHORT | {"optim.weight_decay": 1e-2, "sample.images": 0, "sample.interpolation_pairs": 0},
}
WHOLE = {"sgd": (1, 2, 4), "adamw": (1, 2)}  # by how many processes
TAKEN_OVER = [("sgd", 4), ("adamw", 1)]  # by how many processes, from 2 processes


@pytest.fixture(scope="module")
def worlds(workplace: Path) -> dict[tuple[str, int, str], RunDir]:
    """By optimiser, number of processes, and whether they did it all, the first half, or the second half after 2."""
    made: dict[tuple[str, int, str], RunDir] = {}
    for size in (2, 1, 4):
        runs = workplace / f"diffusion-world-{size}"
        work = []
        for name, changes in ((name, changes) for name, changes in OPTIMIZERS.items() if size in WHOLE[name]):
            for part, at in [("whole", None)] + [("half", STOP)] * (size == 2):
                made[name, size, part] = prepare(tiny(**changes), runs / part)
                work.append((str(made[name, size, part].folder), at))
            if (name, size) in TAKEN_OVER:
                half = made[name, 2, "half"].folder
                made[name, size, "rest"] = RunDir(Path(shutil.copytree(half, runs / "rest" / half.name)))
                work.append((str(made[name, size, "rest"].folder), None))
        arguments = ["", json.dumps(work)]
        results = [end(rank) for rank in start_ranks(runs, size, program=TRAINS_ALL, arguments=arguments)]
        assert [result.returncode for result in results] == [0] * size, results[-1].stderr
    return made


@pytest.mark.parametrize(
    "optimizer, world_size, part", [(o, s, "whole") for o, sizes in WHOLE.items() for s in sizes[1:]]
)
def test_20_steps_of_a_diffusion_run_do_not_depend_on_the_number_of_processes(
    worlds, optimizer: str, world_size: int, part: str
) -> None:
    one, other = worlds[optimizer, 1, "whole"], worlds[optimizer, world_size, part]
    assert len(column(other, "train/loss")) == 20
    assert column(other, "evaluate/weights").tolist() == [b"raw", b"ema"] * 3
    for name in ("train/step", "train/loss", "evaluate/loss"):
        np.testing.assert_allclose(column(other, name), column(one, name), rtol=0, atol=1e-6, err_msg=name)
    expected, found = weights(one), weights(other)
    assert set(found) == set(expected)
    for name in expected if optimizer == "sgd" else ():
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("optimizer, world_size", TAKEN_OVER)
def test_a_diffusion_run_that_goes_on_with_another_number_of_processes_stays_within_the_same_bounds(
    worlds, optimizer: str, world_size: int
) -> None:
    rows = ledger(worlds[optimizer, world_size, "rest"].folder)
    assert [(row["world_size"], row["to_step"]) for row in rows] == [(2, STOP), (world_size, 20)]
    test_20_steps_of_a_diffusion_run_do_not_depend_on_the_number_of_processes(worlds, optimizer, world_size, "rest")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_20_steps_of_a_diffusion_run_move_losses_and_weights_far_more_than_the_bounds(worlds, optimizer: str) -> None:
    assert np.ptp(column(worlds[optimizer, 1, "whole"], "train/loss")) > 1e-2
    found = weights(worlds[optimizer, 1, "whole"])
    assert np.abs(found["raw/head.weight"] - found["ema/head.weight"]).max() > 1e-4


@pytest.mark.parametrize("world_size", [2, 4])
def test_pictures_of_a_diffusion_run_differ_by_at_most_one_grey_level_on_other_numbers_of_processes(
    worlds, world_size: int
) -> None:
    one, many = (pictures(worlds["sgd", size, "whole"].folder) for size in (1, world_size))
    for name in (name for name in one if name.endswith("/images")):
        assert one[name].std() > 10
        np.testing.assert_allclose(many[name].astype(int), one[name].astype(int), rtol=0, atol=1, err_msg=name)


# --- hopeless ---


def test_a_diffusion_run_that_overflows_ends_with_one_line_naming_the_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    # With this rate the weights of the step before are finite, but not what they predict.
    changes = {"optim.optimizer": "sgd", "optim.learning_rate": 3, "optim.warmup_steps": 0}
    settings = [f"{key}={value}" for key, value in (TINY | changes | {"cadence.checkpoint_every": 1}).items()]
    result = hpcvision("train", "cifar100_ddpm_small", *settings, "--processes", 1, runs=tmp_path)
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    found = re.search(r"not finite at step (\d+); the last good checkpoint is of step (\d+) in /", complaint(result))
    assert found, result.stderr
    assert_readable(only_run(tmp_path))
    content, _ = checkpoint.load(RunDir(only_run(tmp_path)))
    assert 0 < content["step"] == int(found[2]) < int(found[1])
    model = build_model(RunConfig.model_validate(content["config"]).model)
    for kind in ("model", "average"):
        model.load_state_dict(content[kind])
        assert model(torch.randn(2, 3, 16, 16), torch.tensor([0, 999]), torch.tensor([1, -1])).isfinite().all(), kind


REFUSED = {
    "model.width=1.2": "the cap for task.kind=diffuse is below 1,000,000; try model.width=1.027",
    "train.steps=50001": "train.steps=50,001 is over the cap of 50,000 optimisation steps for task.kind=diffuse",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_generator_over_a_cap_is_refused_in_one_line_before_a_folder_is_made(tmp_path: Path, setting: str) -> None:
    assert REFUSED[setting] in refusal(hpcvision("train", "cifar100_ddpm_small", setting, runs=tmp_path))
    assert list(tmp_path.iterdir()) == []
