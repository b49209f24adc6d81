"""Every training option does what it says, in a real run of one process."""

import json
import shutil
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.distributed import Place, Rank
from hpcvision.errors import TrainingStopped
from hpcvision.launch.job import TrainJob, prepare
from hpcvision.rundir import RunDir
from hpcvision.training import loop, precision
from hpcvision.training.journal import Journal

TINY = {
    "data.source": "synthetic",
    "data.augmentation.per_channel": False,
    "model.width": 0.25,
    "train.steps": 6,
    "train.global_batch_size": 16,
    "optim.warmup_steps": 0,
    "optim.schedule": "constant",
    "optim.optimizer": "sgd",
    "optim.learning_rate": 0.05,
    "optim.weight_decay": 0,
    "cadence.log_every": 1,
    "cadence.evaluate_every": 3,
    "cadence.checkpoint_every": 3,
}


def tiny(**changes: Any):
    return apply(load_job("addnist_cnn"), TINY | {key.replace("__", "."): value for key, value in changes.items()})


def trained(tmp_path, name: str, **changes: Any) -> tuple[RunDir, np.ndarray, dict[str, np.ndarray]]:
    rundir = prepare(tiny(**changes), tmp_path / name)
    assert TrainJob(str(rundir.folder))()["finished"]
    with h5py.File(rundir.results) as file:
        return rundir, file["train/loss"][:], {key: item[:] for key, item in file["weights/raw"].items()}


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)


def test_clipping_to_a_huge_norm_changes_nothing_and_to_a_small_one_bounds_the_step(tmp_path):
    start = trained(tmp_path, "start", optim__learning_rate=1e-12)[2]
    free = trained(tmp_path, "free", optim__momentum=0)[2]
    huge = trained(tmp_path, "huge", optim__momentum=0, optim__gradient_clip=1e9)[2]
    small = trained(tmp_path, "small", optim__momentum=0, optim__gradient_clip=1e-3)[2]
    assert distance(free, huge) == 0
    moved = np.sqrt(sum(((small[key] - start[key]) ** 2).sum() for key in small))
    assert moved <= 6 * 0.05 * 1e-3 * 1.01  # steps x learning rate x norm
    assert moved > 0


def test_label_smoothing_raises_the_loss_of_a_fresh_network_by_nothing_and_changes_its_training(tmp_path):
    plain, smoothed = (trained(tmp_path, str(s), task__label_smoothing=s) for s in (0.0, 0.3))
    # A fresh network predicts all classes alike, so any mixture of targets costs log(20).
    assert plain[1][0] == pytest.approx(np.log(20), abs=0.05)
    assert smoothed[1][0] == pytest.approx(np.log(20), abs=0.05)
    assert distance(plain[2], smoothed[2]) > 0


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32_and_keeps_fp32_weights(tmp_path, kind):
    full = trained(tmp_path, "fp32")
    half = trained(tmp_path, kind, train__precision=kind)
    assert np.abs(full[1] - half[1]).max() < 0.05
    assert 0 < distance(full[2], half[2]) < 0.05
    assert all(values.dtype == np.float32 for values in half[2].values())


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_stopped_run_goes_on_with_its_optimiser_and_its_loss_scale(tmp_path, kind, optimizer):
    changes = {"train__precision": kind, "optim__optimizer": optimizer, "optim__gradient_clip": 1.0}
    undisturbed, _, weights = trained(tmp_path, "whole", **changes)
    again = RunDir(tmp_path / "again" / undisturbed.folder.name)
    shutil.copytree(undisturbed.folder, again.folder)
    again.previous_checkpoint.replace(again.checkpoint)  # of step 3
    lines = again.log.read_text().splitlines(keepends=True)
    again.log.write_text("".join(line for line in lines if '"finished"' not in line))
    if kind == "fp16":
        assert torch.load(again.checkpoint, weights_only=True)["scaler"]["scale"] > 1
    assert TrainJob(str(again.folder))()["finished"]
    with h5py.File(again.results) as file:
        assert distance(weights, {key: item[:] for key, item in file["weights/raw"].items()}) == 0
        assert file["ledger/to_step"][-1] == 6


def test_muon_moves_hidden_weights_by_its_own_rate_and_others_by_sgds(tmp_path):
    start, sgd, muon, slow = (
        trained(tmp_path, name, train__steps=1, **changes)[2]
        for name, changes in {
            "start": {"optim__learning_rate": 1e-12},
            "sgd": {},
            "muon": {"optim__optimizer": "muon", "optim__muon_weight_decay": 0},
            "slow": {"optim__optimizer": "muon", "optim__muon_weight_decay": 0, "optim__muon_learning_rate": 0.01},
        }.items()
    )
    hidden = {key for key in sgd if distance({key: sgd[key]}, muon)}
    assert hidden == {"features.3.weight", "features.6.weight", "features.9.weight", "head.1.weight"}
    for key in hidden:
        np.testing.assert_allclose(muon[key] - start[key], 2 * (slow[key] - start[key]), atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: apt-get install g++")
def test_a_compiled_model_trains_as_the_plain_one(tmp_path):
    plain, compiled = (trained(tmp_path, str(on), train__compile=on) for on in (False, True))
    assert np.abs(plain[1] - compiled[1]).max() < 1e-4
    assert set(plain[2]) == set(compiled[2])


@pytest.mark.parametrize("allowed", [True, False])
def test_allow_tf32_sets_both_switches_of_torch(allowed):
    rank = Rank(Place(), torch.device("cpu"))
    precision.set_arithmetic(tiny(train__allow_tf32=allowed).train, rank)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


NATIVE = {"avx2", "avx512f", "avx512_bf16"}


@pytest.mark.parametrize("flags, chosen", [(NATIVE, "bf16"), ({"avx2", "avx512f"}, "fp32"), (set(), "fp32")])
def test_a_run_takes_bf16_where_the_cpu_computes_it_natively_and_fp32_elsewhere(tmp_path, monkeypatch, flags, chosen):
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    rundir = prepare(tiny(train__precision="auto"), tmp_path)
    assert TrainJob(str(rundir.folder))()["finished"]
    assert torch.load(rundir.checkpoint, weights_only=True)["precision"] == chosen
    with h5py.File(rundir.results) as file:
        assert json.loads(file.attrs["provenance_json"])["precision"] == chosen


def test_a_run_keeps_its_precision_on_a_machine_that_would_choose_another(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx2"}))
    whole, _, weights = trained(tmp_path, "whole", train__precision="auto")
    again = RunDir(tmp_path / "again" / whole.folder.name)
    shutil.copytree(whole.folder, again.folder)
    again.previous_checkpoint.replace(again.checkpoint)  # of step 3
    lines = again.log.read_text().splitlines(keepends=True)
    again.log.write_text("".join(line for line in lines if '"finished"' not in line))
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(NATIVE))
    assert TrainJob(str(again.folder))()["finished"]
    with h5py.File(again.results) as file:
        assert distance(weights, {key: item[:] for key, item in file["weights/raw"].items()}) == 0


def test_threads_are_slurms_for_a_task_of_srun_and_a_share_of_the_machine_otherwise(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    device = torch.device("cpu")
    assert precision.threads_of(Rank(Place(world_size=4, is_slurm_task=True), device)) == 7
    assert precision.threads_of(Rank(Place(world_size=4), device)) == 2


def test_an_evaluation_that_a_kill_took_is_made_up_for(tmp_path):
    whole, _, _ = trained(tmp_path, "whole")
    again = RunDir(tmp_path / "again" / whole.folder.name)
    shutil.copytree(whole.folder, again.folder)
    again.previous_checkpoint.replace(again.checkpoint)  # of step 3, where an evaluation is due
    with Journal(again, resume_step=3) as journal:
        kept = [event for event in journal.events if event["event"] != "evaluate"]
    again.log.write_text("".join(f"{event}\n".replace("'", '"') for event in kept))
    assert TrainJob(str(again.folder))()["finished"]
    with h5py.File(whole.results) as one, h5py.File(again.results) as other:
        for name in ("step", "loss", "accuracy"):
            assert (one[f"evaluate/{name}"][:] == other[f"evaluate/{name}"][:]).all()


def test_ranks_that_read_different_checkpoints_stop_instead_of_training_apart():
    class Apart:
        device = torch.device("cpu")

        def gather(self, _):
            return torch.tensor([500, 0])

    with pytest.raises(TrainingStopped, match=r"the ranks read checkpoints of steps \[500, 0\]"):
        loop.check_all_resume_together(500, Apart())
