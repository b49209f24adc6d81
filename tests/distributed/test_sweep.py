"""`hpcvision sweep` with real Ray Tune trials, and which trials a sweep is."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
import torch
from real_processes import events, hpcvision, living

from hpcvision.config import CAPS, apply
from hpcvision.data.splits import Split, save_prepared
from hpcvision.models.counting import parameters_of
from hpcvision.results.digests import broken_seals
from hpcvision.sweep.plan import make_plan

DRAWN = """
from ray import tune

BASE = {base!r}
FIXED = {{"train.steps": 10, "cadence.log_every": 5, "cadence.evaluate_every": 10, "ema.beta": 0}}
SPACE = {{
    "model.width": tune.choice([0.1, 0.25, 3.0]),
    "optim.learning_rate": tune.loguniform(0.01, 0.1),
}}
OBJECTIVE = "loss"
TRIALS = 4
"""

LISTED = """
BASE = {base!r}
FIXED = {{"train.steps": 10, "cadence.log_every": 5, "cadence.evaluate_every": 10, "ema.beta": 0}}
VARIANTS = {{"good": {{}}, "bad": {{"optim.learning_rate": 1e12}}, "narrow": {{"model.width": 0.1}}}}
OBJECTIVE = "accuracy"
"""


@dataclass(frozen=True)
class Swept:
    """A sweep that has run."""

    file: Path
    runs: Path
    result: subprocess.CompletedProcess[str]
    temporary: set[Path]
    """Folders below /tmp that appeared meanwhile and are still there."""
    processes: list[int]
    """Processes that it left."""

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return self.runs / f"{self.file.stem}-sweep"


def run_sweep(file: Path, runs: Path) -> Swept:
    """`hpcvision sweep FILE`, and what was left when the command had ended."""
    temporary, processes = set(Path("/tmp").glob("hv*")), set(living())
    result = hpcvision("sweep", file, runs=runs)
    return Swept(file, runs, result, set(Path("/tmp").glob("hv*")) - temporary, sorted(set(living()) - processes))


@pytest.fixture(scope="module")
def drawn(jobs: dict[str, Path], workplace: Path) -> Swept:
    """Four random trials."""
    file = workplace / "drawn.py"
    file.write_text(DRAWN.format(base=str(jobs["plain"])))
    return run_sweep(file, workplace / "sweeps")


@pytest.fixture(scope="module")
def listed(jobs: dict[str, Path], workplace: Path) -> Swept:
    """Three named trials, one of which overflows."""
    file = workplace / "listed.py"
    file.write_text(LISTED.format(base=str(jobs["plain"])))
    return run_sweep(file, workplace / "sweeps")


def texts(dataset: h5py.Dataset) -> list[str]:
    """A column of words."""
    return dataset.asstr()[()].tolist()


def test_a_sweep_trains_every_trial_and_prints_them_as_a_table(drawn: Swept) -> None:
    assert drawn.result.returncode == 0, drawn.result.stderr
    for number in range(1, 5):
        assert f"trial {number}" in drawn.result.stdout
        assert f"trial {number} finished" in drawn.result.stderr
    assert str(drawn.folder / "sweep.h5") in drawn.result.stdout.replace("\n", "")


def test_sweep_h5_holds_a_row_and_the_whole_archive_of_each_trial(drawn: Swept) -> None:
    with h5py.File(drawn.folder / "sweep.h5") as file:
        fingerprints = texts(file["trials/fingerprint"])
        assert len(set(fingerprints)) == 4
        assert set(texts(file["trials/status"])) == {"finished"}
        assert set(file["runs"]) == set(fingerprints)
        for fingerprint in fingerprints:
            with h5py.File(next(drawn.folder.glob(f"*-{fingerprint}/results.h5"))) as own:
                assert file[f"runs/{fingerprint}"].attrs["digest"] == own.attrs["digest"]
                weights = file[f"runs/{fingerprint}/weights/raw/head.1.weight"][()]
                assert (weights == own["weights/raw/head.1.weight"][()]).all()


def test_sweep_h5_and_the_archives_in_it_are_sealed(drawn: Swept) -> None:
    with h5py.File(drawn.folder / "sweep.h5") as file:
        assert broken_seals(file) == []
        for run in file["runs"].values():
            assert broken_seals(run) == []


def test_the_objective_is_the_validation_loss_of_the_last_step(drawn: Swept) -> None:
    with h5py.File(drawn.folder / "sweep.h5") as file:
        for fingerprint, objective in zip(texts(file["trials/fingerprint"]), file["trials/objective"], strict=True):
            evaluate = file[f"runs/{fingerprint}/evaluate"]
            assert texts(evaluate["split"])[-1] == "validation"
            assert objective == evaluate["loss"][-1]


def test_trials_never_read_the_test_split(drawn: Swept) -> None:
    with h5py.File(drawn.folder / "sweep.h5") as file:
        for run in file["runs"].values():
            assert run.attrs["test_reads"] == 0
            assert set(run["scores"]) == {"validation"}
            assert "test" not in texts(run["evaluate/split"])


def test_a_sweep_leaves_no_temporary_folder_and_no_process_behind(drawn: Swept) -> None:
    assert drawn.temporary == set()
    assert drawn.processes == []


def test_a_width_over_the_cap_is_never_a_trial(drawn: Swept) -> None:
    plan = make_plan(str(drawn.file), {}, trials=20)
    assert plan.removed > 0
    for _, turned in plan.trials:
        assert parameters_of(apply(plan.base, turned).model) < CAPS["classify"].parameters


def test_the_plan_is_the_same_for_the_same_seed_and_another_for_another(drawn: Swept) -> None:
    plans = [make_plan(str(drawn.file), {}, trials=None, seed=seed).trials for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_running_a_finished_sweep_again_trains_nothing(drawn: Swept) -> None:
    journals = {path: path.read_bytes() for path in drawn.folder.glob("*/log.jsonl")}
    again = hpcvision("sweep", drawn.file, runs=drawn.runs)
    assert again.returncode == 0, again.stderr
    assert "4 trials are finished already" in again.stdout
    assert {path: path.read_bytes() for path in drawn.folder.glob("*/log.jsonl")} == journals


def test_a_trial_that_fails_is_told_with_its_folder_and_a_non_zero_exit(listed: Swept) -> None:
    assert listed.result.returncode == 2
    line = listed.result.stderr.splitlines()[-1]
    assert line.startswith("hpcvision: 1 of 3 trials did not finish (bad")
    trace = Path(line.split(" see ")[1].split(");")[0])
    assert "not finite at step" in trace.read_text()


def test_a_trial_that_fails_ends_no_other(listed: Swept) -> None:
    with h5py.File(listed.folder / "sweep.h5") as file:
        assert texts(file["trials/status"]) == ["finished", "failed", "finished"]
    finished = [path for path in listed.folder.glob("*/log.jsonl") if events(path.parent, "finished")]
    assert len(finished) == 2


def test_a_sweep_with_a_failed_trial_leaves_nothing_behind_either(listed: Swept) -> None:
    assert listed.temporary == set()
    assert listed.processes == []


def test_trials_find_data_that_lies_beside_the_user(
    jobs: dict[str, Path], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = workplace / "beside"
    monkeypatch.setenv("HPCVISION_DATA", str(runs / "data"))
    labels = torch.arange(100).repeat(51)  # 50 of every class are held out, one is left to train on
    noise = torch.randint(256, (len(labels), 3, 32, 32), dtype=torch.uint8)
    parts = {"train": Split(noise, labels), "test": Split(noise[:100], labels[:100])}
    save_prepared("cifar100", parts, facts={"class_names": [f"class {label}" for label in range(100)]})
    file = workplace / "beside.py"
    file.write_text(LISTED.format(base=str(jobs["tiny"])).replace('"bad": {"optim.learning_rate": 1e12}, ', ""))
    more = {"HPCVISION_DATA": "data"}  # relative to the current folder, as the default is
    result = hpcvision("sweep", file, "data.source=cifar100", "train.steps=3", "--trials", 1, runs=runs, **more)
    assert result.returncode == 0, result.stderr
    assert "on CIFAR-100" in result.stdout
