"""The project files agree with each other and hold on any machine."""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
MISSION = {"torch", "torchvision", "submitit", "ray", "torch-fidelity", "h5py", "tensorboard", "pydantic", "typer"}
MISSION |= {"rich", "matplotlib", "pandas"}
PAGES = [path for path in ("README.md", "CONTRIBUTING.md", "LOG.md") if (ROOT / path).exists()]


def requirements(lines):
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(item.name): item for item in parsed}


def pip_section():
    return next(item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict))


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return requirements(line for line in lines if line.strip() and not line.startswith("#"))


NEEDED = requirements(PROJECT["dependencies"])
IN_CONDA = requirements(line for line in pip_section() if not line.startswith("-"))


def files_of_the_project():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_conda_environment_lists_the_packages_of_the_mission():
    assert set(IN_CONDA) == MISSION


def test_the_conda_environment_and_pyproject_need_the_same_packages_with_the_same_extras():
    conda, pyproject = ({name: item.extras for name, item in listed.items()} for listed in (IN_CONDA, NEEDED))
    assert conda == pyproject


def test_every_constraint_is_one_exact_version():
    for item in constraints().values():
        assert [part.operator for part in item.specifier] == ["=="], str(item)


@pytest.mark.parametrize("name", NEEDED)
def test_the_constrained_version_of_every_package_satisfies_pyproject_and_the_conda_environment(name):
    version = next(iter(constraints()[name].specifier)).version
    for item in (NEEDED[name], IN_CONDA[name]):
        assert item.specifier.contains(version, prereleases=True)


def test_the_tools_of_the_dev_extra_are_constrained_too():
    assert set(requirements(PROJECT["optional-dependencies"]["dev"])) <= set(constraints())


def test_the_python_of_the_conda_environment_is_one_that_pyproject_allows():
    python = next(item for item in ENVIRONMENT["dependencies"] if str(item).startswith("python"))
    version = re.search(r"[\d.]+", python).group()
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)


def test_the_constraints_that_the_conda_environment_names_are_there():
    named = [line.split()[-1] for line in pip_section() if line.startswith(("-c", "--constraint"))]
    assert all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_heading_leads_to_one(page):
    text = (ROOT / page).read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    headings = {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}
    assert [link for link in re.findall(r"\]\(#([^)\s]+)\)", text) if link not in headings] == []


def test_no_file_names_a_folder_of_one_persons_machine():
    # Put together here, so that this file does not find itself.
    machine = re.compile("/" + r"(?:work/(?:main|shared)|root/|Users/\w+|home/\w+)")
    found = []
    for path in files_of_the_project():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match}" for match in machine.findall(text)]
    assert found == []


def test_every_marker_that_a_test_uses_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert {"long", "slurm", "browser", "gpu"} <= {line.partition(":")[0] for line in declared}


@pytest.mark.long
def test_the_pip_section_of_the_conda_environment_installs_into_a_fresh_venv(tmp_path):
    # conda runs pip in the folder of environment.yml; pip reads a requirements file's paths from the file's own folder.
    lines = [
        line.replace("--editable .", f"--editable {ROOT}").replace("constraints.txt", str(ROOT / "constraints.txt"))
        for line in pip_section()
    ]
    (tmp_path / "requirements.txt").write_text("\n".join(lines) + "\n")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", tmp_path / "requirements.txt"], check=True, cwd=ROOT)
    program = (
        "import hpcvision, torch, torchvision, submitit, ray.tune, torch_fidelity, h5py\n"
        "import tensorboard, pydantic, typer, rich, matplotlib, pandas\n"
        "from hpcvision.models.counting import parameters_of\n"
        "from hpcvision.config import BabyMobileNetConfig\n"
        "print(parameters_of(BabyMobileNetConfig()), hpcvision.__file__)\n"
    )
    found = subprocess.run([python, "-c", program], check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    assert found.split() == ["97584", str(ROOT / "hpcvision" / "__init__.py")]
    assert sys.prefix not in found
