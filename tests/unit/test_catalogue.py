"""Jobs and sweeps are files found by name or path: in the checkout, or shipped inside the wheel."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hpcvision.config import DataConfig, apply, catalogue
from hpcvision.errors import UserError
from hpcvision.models.counting import check_cap
from hpcvision.sweep.plan import make_plan

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.py"))

JOB = """
from hpcvision.config import BabyMobileNetConfig, RunConfig

def config():
    return RunConfig(name="mine", seed={seed}, model=BabyMobileNetConfig())
"""


@pytest.fixture
def job_file(tmp_path):
    """A function that writes a job file with a seed and gives its path."""

    def write(path, seed=0):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(JOB.format(seed=seed))
        return path

    return write


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_found_by_name(name):
    assert catalogue.load_job(name).name == name


def test_a_job_is_found_by_path(job_file):
    assert catalogue.load_job(str(job_file("my job.py", seed=5))).seed == 5


def test_a_job_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert catalogue.load_job("addnist_cnn").name == "addnist_cnn"


@pytest.mark.parametrize("name", JOBS)
def test_a_misspelt_job_is_answered_with_the_nearest_one(name):
    with pytest.raises(UserError) as caught:
        catalogue.load_job(name[:-2] + "x")
    assert str(caught.value) == f"there is no job named '{name[:-2]}x'; did you mean {name!r}?"


def test_a_job_like_no_other_is_answered_with_all_of_them():
    with pytest.raises(UserError, match=f"choose one of {', '.join(JOBS)}"):
        catalogue.find("jobs", "qqqq")


def test_a_path_without_a_file_is_said_to_lack_one(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.py' does not exist"):
        catalogue.find("jobs", str(tmp_path / "nothing.py"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "has no function config"),
        ("def config(): return 3", "returns int, not a RunConfig"),
        ("from hpcvision.config import OptimConfig\ndef config(): OptimConfig(learning_rate=-1)", "learning_rate=-1"),
        (JOB.format(seed=0).replace("seed=0", "sead=0"), "sead=0"),
        (JOB.format(seed=0).replace("BabyMobileNetConfig()", "print"), "model is not a BabyMobileNetConfig or "),
        ("import json\nimport no_such_package", ", line 2: ModuleNotFoundError: No module named 'no_such_package'"),
        ("import json\ndef config():\n    return json.loads('{')", ", line 3: JSONDecodeError: Expecting property"),
    ],
)
def test_a_job_file_that_gives_no_valid_configuration_is_named_in_one_line(tmp_path, text, words):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        catalogue.load_job(str(path))
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_job_that_was_edited_in_the_checkout_is_the_one_that_runs(job_file, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    job_file("hpcvision/_shipped/jobs/mine.py", seed=1)
    edited = job_file("jobs/mine.py", seed=2)
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "hpcvision" / "config" / "catalogue.py"))
    assert catalogue.load_job("mine").seed == 2
    edited.write_text(edited.read_text().replace("seed=2", "seed=3"))
    assert catalogue.load_job("mine").seed == 3


def test_outside_a_checkout_the_shipped_job_runs_whatever_lies_beside_the_package(job_file, tmp_path, monkeypatch):
    job_file("hpcvision/_shipped/jobs/mine.py", seed=1)
    job_file("jobs/mine.py", seed=2)
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "hpcvision" / "config" / "catalogue.py"))
    assert catalogue.load_job("mine").seed == 1


def test_a_loaded_job_does_not_become_an_importable_module():
    catalogue.load_job("addnist_cnn")
    assert "addnist_cnn" not in sys.modules


@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_below_its_cap(name):
    check_cap(catalogue.load_job(name))


@pytest.mark.parametrize("name", JOBS)
def test_every_job_runs_on_drawn_images_too(name):
    config = apply(catalogue.load_job(name), {"data.source": "synthetic"})
    assert config.data.source == "synthetic"
    assert DataConfig.model_validate(config.data.model_dump()) == config.data


@pytest.mark.parametrize("name", JOBS)
def test_every_job_says_what_it_is(name):
    module = catalogue.load_file(catalogue.find("jobs", name))
    assert module.__doc__
    assert module.config.__doc__


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_gives_trials_that_are_valid_different_and_below_the_cap(name):
    plan = make_plan(name, {}, trials=None)
    configs = [plan.config(index) for index in range(len(plan.trials))]
    for config in configs:
        check_cap(config)
    assert len({config.fingerprint for config in configs}) == len(configs) >= 2


@pytest.mark.parametrize("name", SWEEPS)
def test_every_trial_of_every_sweep_runs_on_drawn_images_too(name):
    plan = make_plan(name, {"data.source": "synthetic"}, trials=None)
    assert {plan.config(index).data.source for index in range(len(plan.trials))} == {"synthetic"}


def test_the_wheel_holds_every_job_sweep_and_cluster_file(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"hpcvision/_shipped/{path.relative_to(ROOT)}"
        for folder in ("jobs", "sweeps", "slurm")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= inside
    assert {f"hpcvision/_shipped/jobs/{name}.py" for name in JOBS} <= inside


def test_the_wheel_holds_nothing_but_the_package(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hpcvision"}
    assert [name for name in zipfile.ZipFile(wheel).namelist() if "__pycache__" in name] == []


def test_the_unpacked_wheel_lists_and_loads_the_jobs_from_another_folder(wheel, tmp_path):
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    program = (
        "import hpcvision, sys\n"
        "from hpcvision.config.catalogue import load_job, names\n"
        "print(hpcvision.__file__)\n"
        "print(*[f'{name} {load_job(name).fingerprint}' for name in names('jobs')], *names('sweeps'), sep='\\n')\n"
    )
    # -P and another folder: neither the checkout nor the current folder is on the path before the wheel.
    found = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert found[0] == str(tmp_path / "site" / "hpcvision" / "__init__.py")
    assert found[1:] == [f"{name} {catalogue.load_job(name).fingerprint}" for name in JOBS] + SWEEPS


def test_the_job_that_the_readme_shows_is_one(tmp_path):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from hpcvision.config import Baby.*?)```", readme, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    check_cap(catalogue.load_job(str(tmp_path / "mine.py")))
