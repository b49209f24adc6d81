"""`hpcvision sweep` with real Ray Tune trials, and which trials a sweep is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from real_processes import SLURM_TASK, complaint, events, hpcvision, living, refusal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import PLUGIN_NAME as HPARAMS

from hpcvision.config import CAPS, apply
from hpcvision.data.splits import Split, save_prepared
from hpcvision.errors import UserError
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
TOP = 2
SEEDS = 2
"""

LISTED = """
BASE = {base!r}
FIXED = {{"train.steps": 10, "cadence.log_every": 5, "cadence.evaluate_every": 10, "ema.beta": 0}}
VARIANTS = {{
    "good": {{}},
    "bad": {{"optim.learning_rate": 1e12}},
    "narrow": {{"model.width": 0.1}},
    "blocked": {{"seed": 5}},
}}
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
    """Four named trials; one overflows, and one cannot write its log."""
    file = workplace / "listed.py"
    file.write_text(LISTED.format(base=str(jobs["plain"])))
    blocked = workplace / "sweeps" / "listed-sweep" / make_plan(str(file), {}).config(3).folder_name
    (blocked / "trial.log").mkdir(parents=True)
    return run_sweep(file, workplace / "sweeps")


def texts(dataset: h5py.Dataset) -> list[str]:
    """A column of words."""
    return dataset.asstr()[()].tolist()


def test_a_sweep_trains_every_trial_and_prints_them_as_a_table(drawn: Swept) -> None:
    assert drawn.result.returncode == 0, drawn.result.stderr
    for number in range(1, 5):
        assert re.search(rf"^{number} +finished ", drawn.result.stdout, re.MULTILINE)
        assert f"trial {number} finished" in drawn.result.stderr
    assert str(drawn.folder / "sweep.h5") in drawn.result.stdout.replace("\n", "")


def test_sweep_h5_holds_a_row_and_the_whole_archive_of_each_run(drawn: Swept) -> None:
    with h5py.File(drawn.folder / "sweep.h5") as file:
        fingerprints = texts(file["trials/fingerprint"])
        assert len(set(fingerprints)) == 6
        assert texts(file["trials/role"]) == 4 * ["trial"] + 2 * ["seed"]
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
            last = [number for number, split in enumerate(texts(evaluate["split"])) if split == "validation"][-1]
            assert objective == evaluate["loss"][last]


def test_the_best_trials_are_trained_with_further_seeds_and_nothing_else_of_them_changes(drawn: Swept) -> None:
    with h5py.File(drawn.folder / "sweep.h5") as file:
        trials = file["trials"]
        widths, losses = trials["model.width"][()], trials["objective"][()]
        best = np.argsort(losses[:4])[:2]
        assert trials["seed"][()].tolist() == [0, 0, 0, 0, 1, 1]
        assert widths[4:].tolist() == widths[best].tolist()
        assert trials["optim.learning_rate"][4:].tolist() == trials["optim.learning_rate"][()][best].tolist()


def test_only_the_winner_over_all_seeds_has_read_the_test_split_once_for_each_seed(drawn: Swept) -> None:
    with h5py.File(drawn.folder / "sweep.h5") as file:
        fingerprints, losses = texts(file["trials/fingerprint"]), file["trials/objective"][()]
        best = np.argsort(losses[:4])[:2]
        means = [(losses[trial] + losses[4 + place]) / 2 for place, trial in enumerate(best)]
        place = int(np.argmin(means))
        winners = {fingerprints[best[place]], fingerprints[4 + place]}
        assert file.attrs["winner"] == fingerprints[best[place]]
        for fingerprint, run in file["runs"].items():
            assert run.attrs["test_reads"] == (fingerprint in winners)
            assert set(run["scores"]) == ({"test"} if fingerprint in winners else {"validation"})
            assert ("test" in texts(run["evaluate/split"])) == (fingerprint in winners)


def test_the_test_scores_of_the_winner_are_those_of_an_ordinary_run(drawn: Swept, jobs: dict[str, Path]) -> None:
    with h5py.File(drawn.folder / "sweep.h5") as file:
        winner = file[f"runs/{file.attrs['winner']}"]
        config = json.loads(winner.attrs["config_json"])
        scores = dict(winner["scores/test"].attrs)
    turned = [
        f"{key}={config[key.split('.')[0]][key.split('.')[1]]!r}" for key in ("model.width", "optim.learning_rate")
    ]
    more = ["train.steps=10", "cadence.log_every=5", "cadence.evaluate_every=10", "ema.beta=0"]
    result = hpcvision("train", jobs["plain"], *more, *turned, "--processes", 1, runs=drawn.runs / "alone")
    assert result.returncode == 0, result.stderr
    with h5py.File(next((drawn.runs / "alone").glob("*/results.h5"))) as file:
        assert dict(file["scores/test"].attrs) == scores


def test_every_trial_has_its_settings_as_hparams(drawn: Swept) -> None:
    for folder in drawn.folder.glob("*/tensorboard"):
        board = EventAccumulator(str(folder)).Reload()
        assert "_hparams_/session_start_info" in board.PluginTagToContent(HPARAMS)
        assert "validation/loss" in board.Tags()["scalars"]


def test_a_sweep_leaves_no_temporary_folder_and_no_process_behind(drawn: Swept) -> None:
    assert drawn.temporary == set()
    assert drawn.processes == []


def test_a_width_over_the_cap_is_never_a_trial(drawn: Swept) -> None:
    plan = make_plan(str(drawn.file), {}, trials=20)
    assert (plan.removed, plan.combinations) == (1, 3)
    for trial in plan.trials:
        assert parameters_of(apply(plan.base, trial.overrides).model) < CAPS["classify"].parameters
    assert "the caps removed 1 of 3 combinations and 33.3% of the space" in drawn.result.stdout


def test_the_plan_is_the_same_for_the_same_seed_and_another_for_another(drawn: Swept) -> None:
    plans = [make_plan(str(drawn.file), {}, trials=None, seed=seed).trials for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_running_a_finished_sweep_again_trains_nothing(drawn: Swept) -> None:
    journals = {path: path.read_bytes() for path in drawn.folder.glob("*/log.jsonl")}
    again = hpcvision("sweep", drawn.file, runs=drawn.runs)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 trials have ended already" in again.stdout
    assert {path: path.read_bytes() for path in drawn.folder.glob("*/log.jsonl")} == journals


TOLD_OF_THE_END = """
import atexit, os, signal
from hpcvision.__main__ import main
from hpcvision.sweep import driver

def write_archive_and_be_told(sweep, write=driver.write_archive):
    os.kill(os.getpid(), signal.SIGUSR2)
    return write(sweep)

driver.write_archive = write_archive_and_be_told
for number in (signal.SIGUSR2, signal.SIGTERM):
    atexit.register(os.kill, os.getpid(), number)
main()
"""


@pytest.mark.parametrize(("task", "code"), [(SLURM_TASK, 0), ({}, -signal.SIGTERM)], ids=["a task", "no task"])
def test_a_finished_sweep_that_slurm_tells_of_the_end_as_it_writes_and_as_it_exits_has_not_failed(
    drawn: Swept, task: dict[str, str], code: int
) -> None:
    command = [sys.executable, "-c", TOLD_OF_THE_END, "sweep", drawn.file, "--runs", drawn.runs]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | task, timeout=120)
    assert result.returncode == code, result.stderr
    assert "best: " in result.stdout
    assert "stopped" not in result.stdout


def test_a_trial_that_fails_is_told_with_its_folder_and_a_non_zero_exit(listed: Swept) -> None:
    assert listed.result.returncode == 2
    line = listed.result.stderr.splitlines()[-1]
    assert line.startswith("hpcvision: 1 of 4 trials did not finish (blocked: IsADirectoryError: ")
    trace = Path(line.rpartition(" see ")[2].split(");")[0])
    assert "IsADirectoryError" in trace.read_text()


def test_a_trial_that_fails_ends_no_other(listed: Swept) -> None:
    with h5py.File(listed.folder / "sweep.h5") as file:
        assert texts(file["trials/status"]) == ["finished", "diverged", "finished", "failed"]
        reasons = texts(file["trials/reason"])
        assert reasons[1].startswith("the loss or a weight is not finite at step")
        # What a variant does not turn is the base's.
        assert file["trials/model.width"][()].tolist() == [0.25, 0.25, 0.1, 0.25]
    finished = [path for path in listed.folder.glob("*/log.jsonl") if events(path.parent, "finished")]
    assert len(finished) == 2


def test_a_trial_that_failed_is_tried_again_and_one_that_diverged_is_not(listed: Swept, tmp_path: Path) -> None:
    shutil.copytree(listed.runs, tmp_path / "runs")
    (blocked,) = (path for path in (tmp_path / "runs").glob("listed-sweep/*/trial.log") if path.is_dir())
    blocked.rmdir()
    again = hpcvision("sweep", listed.file, "--resume", runs=tmp_path / "runs")
    assert again.returncode == 0, again.stderr
    assert "3 of 4 trials have ended already" in again.stdout
    with h5py.File(tmp_path / "runs" / "listed-sweep" / "sweep.h5") as file:
        assert texts(file["trials/status"]) == ["finished", "diverged", "finished", "finished"]
        assert file.attrs["finished"]


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
    file.write_text(LISTED.format(base=str(jobs["tiny"])).replace('"bad": {"optim.learning_rate": 1e12},', ""))
    more = {"HPCVISION_DATA": "data"}  # relative to the current folder, as the default is
    result = hpcvision("sweep", file, "data.source=cifar100", "train.steps=3", "--trials", 1, runs=runs, **more)
    assert result.returncode == 0, result.stderr
    assert "on CIFAR-100" in result.stdout


BAD = {
    "an unknown key": ('SPACE = {"optim.learning_rat": 1}', "unknown key 'optim.learning_rat'; did you mean"),
    "no point below the cap": ('SPACE = {"model.width": 9.0}', "below the cap of 100,000 parameters; the smallest has"),
    "an objective never reported": (
        "SPACE = {}\nOBJECTIVE = 'frechet'",
        "never reported; choose one of accuracy, loss",
    ),
    "no trials": ("SPACE = {}\nTRIALS = 0", "TRIALS=0; give at least 1"),
    "no space": ("", "neither SPACE nor VARIANTS"),
    "an unknown search": ("SPACE = {}\nSEARCH = 'bayes'", "SEARCH='bayes'"),
    "two variants that are one run": (
        'VARIANTS = {"one": {}, "two": {"optim.weight_decay": 0.0}}',
        "'one' and 'two' are the same run",
    ),
    "a word that is none": ("SPACE = {}\nTRIAL = 3", "TRIAL of", "did you mean TRIALS?"),
    "trials in words": ("SPACE = {}\nTRIALS = '5'", "TRIALS='5'"),
    "seeds of variants": ("VARIANTS = {'one': {}}\nSEEDS = 3", "SEEDS of", "VARIANTS are trained once each"),
    "seeds of seeds": ("SPACE = {'seed': 1}", "write SEEDS = 1"),
    "a variant that is a number": ("VARIANTS = {'one': 0.1}", "VARIANTS of", "is no dictionary"),
    "a function": (
        "from ray import tune\nSPACE = {'optim.learning_rate': tune.sample_from(lambda: 0.1)}",
        "tune.sample_from for optim.learning_rate",
    ),
    "a rung after the end": (
        "from hpcvision.sweep import asha\nSPACE = {}\nSCHEDULER = asha(first_rung=20)",
        "first_rung=20 is no step before the last one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sweep_is_one_line(name: str, jobs: dict[str, Path], tmp_path: Path) -> None:
    text, *words = BAD[name]
    file = tmp_path / "bad.py"
    file.write_text(f"BASE = {str(jobs['plain'])!r}\n{text}\n")
    with pytest.raises(UserError) as caught:
        make_plan(str(file), {})
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_bad_sweep_is_told_before_ray_starts_or_a_folder_is_made(jobs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(f"BASE = {str(jobs['plain'])!r}\nSPACE = {{}}\nTRIALS = 0\n")
    assert "TRIALS=0" in refusal(hpcvision("sweep", file, runs=tmp_path / "runs"))
    assert not list((tmp_path / "runs").iterdir())


def test_a_begun_sweep_is_only_gone_on_with_when_asked(listed: Swept, drawn: Swept, tmp_path: Path) -> None:
    again = hpcvision("sweep", listed.file, runs=listed.runs)
    assert "begun before; go on with --resume" in complaint(again)
    changed = tmp_path / drawn.file.name
    changed.write_text(drawn.file.read_text().replace("0.25", "0.3"))
    assert "of another sweep (it differs in space)" in complaint(
        hpcvision("sweep", changed, "--resume", runs=drawn.runs)
    )
    fewer = hpcvision("sweep", drawn.file, "--trials", 3, runs=drawn.runs)
    assert "has 4 trials, and sweep.h5 would have 3; give --trials 4 or more" in complaint(fewer)
    assert "no sweep to resume" in complaint(hpcvision("sweep", drawn.file, "--resume", runs=tmp_path / "empty"))


def test_a_dry_run_shows_the_configurations_with_their_counts_and_makes_nothing(drawn: Swept, tmp_path: Path) -> None:
    result = hpcvision("sweep", drawn.file, "--dry-run", "--trials", 30, runs=tmp_path / "dry")
    assert result.returncode == 0, result.stderr
    plan = make_plan(str(drawn.file), {}, trials=30)
    for trial in plan.trials[:10]:
        assert f"{parameters_of(apply(plan.base, trial.overrides).model):,}" in result.stdout
    assert re.findall(r"^\d+ ", result.stdout, re.MULTILINE) == [f"{number} " for number in range(1, 11)]
    assert not list((tmp_path / "dry").iterdir())
