"""Sweeps that are killed, stopped and resumed, that stop poor trials early, and that search adaptively; real Ray."""

import json
import os
import random
import re
import shlex
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
    REPEATS,
    SEED,
    assert_same_run,
    complaint,
    end,
    events,
    hpcvision,
    ledger,
    living,
    start_command,
    wait_until,
)

from hpcvision.config import CAPS
from hpcvision.data.splits import Split, save_prepared
from hpcvision.results.digests import broken_seals
from hpcvision.rundir import read_journal
from hpcvision.verify import verify

pytestmark = pytest.mark.long  # minutes, for which `make test` has no room; `make test-long` runs it

COMMON = """
from ray import tune
from hpcvision.sweep import asha, fill_cap

BASE = {base!r}
FIXED = {{
    "train.steps": {steps},
    "cadence.log_every": 5,
    "cadence.evaluate_every": 1000,
    "cadence.checkpoint_every": 10,
}}
"""
RANDOM = (
    COMMON
    + """
SPACE = {{"model.width": tune.uniform(0.1, 3.0), "optim.learning_rate": tune.loguniform(1e-3, 1e-2)}}
OBJECTIVE = "accuracy"
TRIALS = 4
SEEDS = 2
"""
)
HALVING = (
    COMMON
    + """
SPACE = {{"model.width": tune.choice([0.1, 0.2]), "optim.learning_rate": tune.loguniform(1e-6, 1e-2)}}
OBJECTIVE = "loss"
TRIALS = 8
SEEDS = 1
SCHEDULER = asha(first_rung=15, reduction_factor=2)
"""
)
ADAPTIVE = (
    COMMON
    + """
SPACE = {{
    "model.width": tune.uniform(0.05, 3.0),
    "train.global_batch_size": tune.choice([8, 16]),
    "optim.learning_rate": tune.loguniform(1e-5, 1e-1),
}}
OBJECTIVE = "loss"
TRIALS = 10
SEEDS = 1
SEARCH = "optuna"
"""
)
GENERATORS = """
from ray import tune
from hpcvision.sweep import asha

BASE = "cifar100_ddpm_residual"
FIXED = {{
    "train.steps": {steps},
    "train.global_batch_size": 4,
    "train.precision": "fp32",
    "model.width": 0.01,
    "ema.beta": 0,
    "ema.headline": "raw",
    "sample.sampler": "ddim",
    "sample.steps": 2,
    "sample.images": 4,
    "sample.interpolation_pairs": 1,
    "cadence.log_every": 2,
}}
SPACE = {{"optim.learning_rate": tune.grid_search([1e-6, 1e-3])}}
OBJECTIVE = "frechet"
SEEDS = 1
SCHEDULER = asha(first_rung=4, reduction_factor=2)
"""


def sweep_file(folder: Path, text: str, base: Path, *, steps: int = 60) -> Path:
    """A sweep's file."""
    path = folder / "search.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(base=str(base), steps=steps))
    return path


def columns(runs: Path) -> dict[str, list[Any]]:
    """/trials of the archive, column by column."""
    with h5py.File(runs / "search-sweep/sweep.h5") as file:
        assert broken_seals(file) == []
        return {
            name: item.asstr()[()].tolist() if h5py.check_string_dtype(item.dtype) else item[()].tolist()
            for name, item in file["trials"].items()
        }


def nothing_is_left() -> bool:
    """No process of a test's command lives, and no folder of a Ray."""
    return not living() and not list(Path("/tmp").glob("hv*"))


@pytest.fixture(scope="module")
def undisturbed(jobs: dict[str, Path], workplace: Path) -> tuple[Path, Path]:
    """The sweep's file, and its runs when it was left alone."""
    file = sweep_file(workplace / "undisturbed", RANDOM, jobs["tiny"])
    result = hpcvision("sweep", file, runs=workplace / "undisturbed")
    assert result.returncode == 0, result.stderr
    return file, workplace / "undisturbed"


@pytest.mark.parametrize("repeat", range(min(REPEATS, 10)))
def test_a_sweep_whose_driver_is_killed_at_any_moment_and_resumed_equals_the_undisturbed_sweep(
    repeat: int, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    file, reference = undisturbed
    moments = random.Random(SEED + repeat)

    def written(runs: Path) -> int:
        """Bytes of all journals: how far a sweep is, however fast this machine is now."""
        return sum(path.stat().st_size for path in runs.glob("search-sweep/*/log.jsonl"))

    command: list[object] = ["sweep", file]
    killed = []
    for _ in range(2):
        process = start_command(*command, runs=tmp_path)
        wait_until((tmp_path / "search-sweep/sweep.json").exists, "the sweep's folder")
        enough = moments.uniform(written(tmp_path), 0.8 * written(reference))
        wait_until(lambda: written(tmp_path) >= enough or process.poll() is not None, "the moment")  # noqa: B023
        killed.append(process.poll() is None)
        process.kill()  # nothing, where it has finished already
        end(process)
        command = ["sweep", file, "--resume"]
    assert any(killed)
    result = hpcvision(*command, runs=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    mine, theirs = columns(tmp_path), columns(reference)
    assert mine == theirs
    for folder in (reference / "search-sweep").glob("*/"):
        if (folder / "results.h5").exists():
            assert_same_run(folder, tmp_path / "search-sweep" / folder.name)
            rows = [row for row in ledger(tmp_path / "search-sweep" / folder.name) if row["to_step"] > row["from_step"]]
            assert [row["from_step"] for row in rows] == [0, *(row["to_step"] for row in rows[:-1])]
            assert rows[-1]["to_step"] == 60
    COUNTED.append(f"sweep {repeat + 1}: driver killed {sum(killed)} times")
    wait_until(nothing_is_left, "the end of Ray", patience=20)


def test_nothing_of_ray_survives_a_driver_that_was_killed(jobs: dict[str, Path], tmp_path: Path) -> None:
    file = sweep_file(tmp_path, RANDOM, jobs["tiny"], steps=5000)
    process = start_command("sweep", file, runs=tmp_path)
    wait_until(lambda: any(events(folder.parent, "train") for folder in tmp_path.glob("*/*/log.jsonl")), "a trial")
    assert list(Path("/tmp").glob("hv*"))
    assert len(living()) > 5
    os.kill(process.pid, signal.SIGKILL)
    end(process)
    wait_until(nothing_is_left, "the end of Ray", patience=20)


@pytest.mark.parametrize("how", ["Ctrl-C", "cancel"])
def test_a_stopped_sweep_saves_all_trials_and_goes_on_from_there(
    how: str, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    file, reference = undisturbed
    process = start_command("sweep", file, runs=tmp_path)
    started = [*tmp_path.glob("*/*/log.jsonl")]

    def at_work() -> bool:
        started[:] = [path for path in tmp_path.glob("*/*/log.jsonl") if events(path.parent, "train")]
        return bool(started)

    wait_until(at_work, "a trial that trains")
    if how == "Ctrl-C":
        os.kill(process.pid, signal.SIGINT)
    else:
        assert re.search(r"search-sweep\s+running", hpcvision("status", runs=tmp_path).stdout)
        told = "told to save and end on this machine: search-sweep\n"
        assert hpcvision("cancel", "search", runs=tmp_path).stdout == told
    result = end(process)
    assert result.returncode == 130, result.stderr
    (words,) = re.findall(r"stopped; `hpcvision (.*)` goes on from here", result.stdout)
    assert nothing_is_left()
    reasons = [event["reason"] for path in started for event in events(path.parent, "stop")]
    assert reasons
    assert set(reasons) <= {"sweep stopped", "SIGTERM", "finished"}
    result = hpcvision(*shlex.split(words), runs=tmp_path)
    assert result.returncode == 0, result.stderr
    assert columns(tmp_path) == columns(reference)


def test_a_trial_whose_process_is_killed_is_told_of_and_the_sweep_goes_on(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    file, reference = undisturbed
    process = start_command("sweep", file, runs=tmp_path)

    def busy() -> list[int]:
        """Processes that write the journal of a trial which trains."""
        found = []
        for path in tmp_path.glob("*/*/log.jsonl"):
            if events(path.parent, "train") and not events(path.parent, "finished"):
                for pid in living():
                    links = Path(f"/proc/{pid}/fd").glob("*")
                    found += [pid for link in links if link.is_symlink() and link.resolve() == path.resolve()]
        return found

    wait_until(busy, "a trial that trains")
    os.kill(busy()[0], signal.SIGKILL)
    result = end(process)
    assert result.returncode == 2
    assert "1 of" in complaint(result)
    assert "its process was killed" in complaint(result)
    found = columns(tmp_path)
    assert sorted(found["status"]) == ["failed"] + (len(found["status"]) - 1) * ["finished"]
    assert sum("its process was killed" in reason for reason in found["reason"]) == 1
    result = hpcvision("sweep", file, "--resume", runs=tmp_path)
    assert result.returncode == 0, result.stderr
    mine, theirs = columns(tmp_path), columns(reference)
    for name in ("fingerprint", "objective", "status"):
        assert mine[name][:4] == theirs[name][:4]


def test_a_trial_that_wants_too_much_memory_is_told_so(jobs: dict[str, Path], tmp_path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    images = int(1.3 * memory / (3 * 32 * 32))  # of one batch, as bytes, which the system refuses at once
    text = COMMON + f'SPACE = {{{{"train.global_batch_size": tune.grid_search([16, {images}])}}}}\nSEEDS = 1\n'
    file = sweep_file(tmp_path, text, jobs["tiny"], steps=10)
    result = hpcvision("sweep", file, runs=tmp_path)
    assert result.returncode == 2
    assert "1 of 2 trials did not finish (trial 2: out of memory: " in complaint(result)
    assert columns(tmp_path)["status"] == ["finished", "failed"]


def decisions_are_explained(folder: Path, rungs: list[int]) -> None:
    """Every decision follows from the values that were recorded before it at the same rung, by ASHA's rule."""
    records = read_journal(folder / "rungs.jsonl")
    assert len({(record["trial"], record["step"]) for record in records}) == len(records)  # none twice
    for number, record in enumerate(records):
        assert record["step"] in rungs
        before = [-other["objective"] for other in records[:number] if other["step"] == record["step"]]
        stops = bool(before) and -record["objective"] < np.percentile(before, 50)
        assert record["decision"] == ("stop" if stops else "continue"), (number, record)


def halving_is_whole(runs: Path) -> None:
    """No trial is lost or doubled, each step is counted once, and stopped trials are those that were decided on."""
    found = columns(runs)
    folder = runs / "search-sweep"
    assert len(found["label"]) == len(set(found["fingerprint"])) == 8
    decisions_are_explained(folder, [15, 30])
    stopped = {
        record["trial"]: record for record in read_journal(folder / "rungs.jsonl") if record["decision"] == "stop"
    }
    for trial, status in enumerate(found["status"]):
        assert status == ("stopped" if trial in stopped else "finished")
        (own,) = folder.glob(f"*-{found['fingerprint'][trial]}")
        steps = stopped[trial]["step"] if trial in stopped else 60
        assert found["steps"][trial] == steps
        rows = ledger(own)
        assert sum(row["to_step"] - row["from_step"] for row in rows) == steps
        if trial in stopped:
            assert found["objective"][trial] == stopped[trial]["objective"]
    assert 1 <= len(stopped) <= 7


@pytest.fixture(scope="module")
def halved(jobs: dict[str, Path], workplace: Path) -> Path:
    """The runs of a sweep with ASHA that was left alone."""
    runs = workplace / "halved"
    result = hpcvision("sweep", sweep_file(runs, HALVING, jobs["tiny"]), runs=runs)
    assert result.returncode == 0, result.stderr
    return runs


def test_poor_trials_are_stopped_at_rungs_for_reasons_that_are_stored(halved: Path) -> None:
    halving_is_whole(halved)


def test_a_sweep_of_which_trials_were_stopped_passes_verify(halved: Path) -> None:
    found = list(verify(halved / "search-sweep/sweep.h5"))
    assert [finding for finding in found if finding.verdict == "FAIL"] == []
    assert len(found) > 5


def test_a_trial_that_paused_at_rungs_equals_one_that_ran_through(
    halved: Path, jobs: dict[str, Path], tmp_path: Path
) -> None:
    found = columns(halved)
    trial = found["status"].index("finished")
    (own,) = (halved / "search-sweep").glob(f"*-{found['fingerprint'][trial]}")
    config = json.loads((own / "config.json").read_text())
    words = [
        "train.steps=60",
        "cadence.log_every=5",
        "cadence.evaluate_every=1000",
        "cadence.checkpoint_every=10",
        f"model.width={config['model']['width']!r}",
        f"optim.learning_rate={config['optim']['learning_rate']!r}",
    ]
    result = hpcvision("train", jobs["tiny"], *words, "--processes", 1, runs=tmp_path)
    assert result.returncode == 0, result.stderr
    (alone,) = tmp_path.glob("*/results.h5")
    with h5py.File(own / "results.h5") as one, h5py.File(alone) as other:
        assert one.attrs["fingerprint"] == other.attrs["fingerprint"]
        for kind in ("raw", "ema"):
            for name, weights in one[f"weights/{kind}"].items():
                assert (weights[()] == other[f"weights/{kind}/{name}"][()]).all()


def test_a_killed_sweep_with_asha_loses_and_doubles_no_trial(
    halved: Path, jobs: dict[str, Path], tmp_path: Path
) -> None:
    file = sweep_file(tmp_path, HALVING, jobs["tiny"])
    process = start_command("sweep", file, runs=tmp_path)
    rungs = tmp_path / "search-sweep/rungs.jsonl"
    wait_until(lambda: len(read_journal(rungs)) >= 4, "four comparisons")
    os.kill(process.pid, signal.SIGKILL)
    end(process)
    before = read_journal(rungs)
    result = hpcvision("sweep", file, "--resume", runs=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_journal(rungs)[: len(before)] == before
    halving_is_whole(tmp_path)
    assert columns(tmp_path)["fingerprint"] == columns(halved)["fingerprint"]


def test_optuna_searches_on_the_cap_surface_and_survives_a_kill(jobs: dict[str, Path], tmp_path: Path) -> None:
    file = sweep_file(tmp_path, ADAPTIVE, jobs["tiny"], steps=20)
    process = start_command("sweep", file, runs=tmp_path)
    points = tmp_path / "search-sweep/trials.jsonl"
    wait_until(lambda: len(read_journal(points)) >= 4, "four proposals")
    os.kill(process.pid, signal.SIGKILL)
    end(process)
    before = read_journal(points)
    result = hpcvision("sweep", file, "--resume", runs=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_journal(points)[: len(before)] == before
    found = columns(tmp_path)
    assert len(found["label"]) == len(set(found["fingerprint"])) == 10
    assert set(found["status"]) == {"finished"}
    assert max(found["parameters"]) < CAPS["classify"].parameters
    assert [event["overrides"]["model.width"] for event in read_journal(points)] == found["model.width"]


def test_a_sweep_of_generators_selects_by_the_distance_to_validation_images_and_stops_while_they_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCVISION_DATA", str(tmp_path / "data"))
    labels = torch.arange(100).repeat(51)  # 50 of every class are held out, one is left to train on
    noise = torch.randint(256, (len(labels), 3, 32, 32), dtype=torch.uint8)
    parts = {"train": Split(noise, labels), "test": Split(noise[:300], labels[:300])}
    save_prepared("cifar100", parts, facts={"class_names": [f"class {label}" for label in range(100)]})
    file = sweep_file(tmp_path, GENERATORS, Path(), steps=8)
    more = {"HPCVISION_DATA": str(tmp_path / "data")}
    process = start_command("sweep", file, runs=tmp_path, **more)
    folder = tmp_path / "search-sweep"
    wait_until(lambda: any("image " in log.read_text() for log in folder.glob("*/trial.log")), "images", patience=200)
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    result = end(process)
    assert result.returncode == 130, result.stderr
    assert time.monotonic() - began < 40
    assert nothing_is_left()
    result = end(start_command("sweep", file, "--resume", runs=tmp_path, **more), patience=900)
    assert result.returncode == 0, result.stderr
    found, decided = columns(tmp_path), read_journal(folder / "rungs.jsonl")
    assert set(found["status"]) <= {"finished", "stopped"}
    assert {(record["trial"], record["step"]) for record in decided} == {(0, 4), (1, 4)}
    decisions_are_explained(folder, [4])
    finished = [
        value if status == "finished" else np.inf
        for value, status in zip(found["objective"], found["status"], strict=True)
    ]
    best = int(np.argmin(finished))
    name = "cifar100_features_validation_raw_ddim_20"
    with h5py.File(folder / "sweep.h5") as archive:
        run = archive[f"runs/{found['fingerprint'][best]}"]
        score = run[f"scores/{name}"]
        assert score["frechet"].attrs["mean"] == found["objective"][best]
        assert (score.attrs["images"], score.attrs["steps"], score.attrs["reference"]) == (2000, 20, "validation")
        assert run.attrs["test_reads"] == 2  # once for the loss, once for the distance
        tested = run[f"scores/{name.replace('validation', 'test')}/frechet"].attrs["mean"]
        others = [archive[f"runs/{other}"] for other in found["fingerprint"] if other != found["fingerprint"][best]]
        assert all(other.attrs["test_reads"] == 0 for other in others)
    assert f"test frechet {tested:.4f} (1 seed), read once for each seed" in result.stdout
