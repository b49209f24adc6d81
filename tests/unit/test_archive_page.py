"""ARCHIVE.md and the README say of the files what the files say of themselves."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcvision.config import differences
from hpcvision.config.catalogue import load_job
from hpcvision.results import load_sweep
from hpcvision.results.record import Rows, Samples, Score
from hpcvision.results.reduce import reduce
from hpcvision.results.writer import add_scores, write_results

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests/data"
ROW = re.compile(r"^\| `([a-z0-9_/*.]+)` \| (\(.*?\)|any) \| (\w+) \| ", re.MULTILINE)


def rows():
    """(pattern, number of axes or None, type) of every dataset on the page, the most special pattern first."""
    found = ROW.findall((ROOT / "ARCHIVE.md").read_text())
    shapes = [
        (path, None if shape == "any" else len(shape.strip("(),").split(",")), kind) for path, shape, kind in found
    ]
    return sorted(shapes, key=lambda row: row[0].count("*") - len(row[0]) / 100)


def datasets(path):
    """Path -> (number of axes, type) of every dataset, without the runs of a sweep."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("runs/"):
            words = h5py.check_string_dtype(item.dtype)
            found[name] = (item.ndim, "text" if words else str(item.dtype))
            assert item.attrs["description"], name

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@pytest.fixture
def full(make_record, tmp_path):
    """A run with everything that there can be."""
    record, ways = make_record(), {"sampler": "ddim", "steps": 5}
    pictures, merit = record.samples["random"].images[:2], np.array([0.5, 0.25])
    best = Samples(pictures, np.arange(2), np.arange(2), ways | {"rule": "some"}, merit)
    strips = {"denoising": Rows(record.interpolations["slerp"].images, np.zeros((2, 2), int), ways)}
    write_results(tmp_path / "a.h5", make_record(samples=record.samples | {"best": best}, strips=strips))
    score = Score({"frechet": [1.0]}, {"extractor": "x"}, by_class={"class_counts": np.arange(20)})
    add_scores(tmp_path / "a.h5", {"x_test": score}, reads_test=False)
    return tmp_path / "a.h5"


def test_every_dataset_is_on_the_page_with_its_shape_and_type_and_the_other_way_round(full):
    known, used = rows(), set()
    assert len(known) > 45
    for path, (axes, kind) in (datasets(full) | datasets(STORED / "format1_sweep.h5")).items():
        row = next((row for row in known if fnmatchcase(path, row[0])), None)
        assert row is not None, f"{path} is not on the page"
        assert row[1] in (None, axes), path
        assert row[2] in ("any", kind), path
        used.add(row[0])
    assert used == {row[0] for row in known}


def test_every_attribute_of_the_root_is_on_the_page(tmp_path):
    page = (ROOT / "ARCHIVE.md").read_text()
    reduce(STORED / "format1_run.h5", tmp_path / "small.h5")
    for path in (tmp_path / "small.h5", STORED / "format1_run.h5", STORED / "format1_sweep.h5"):
        with h5py.File(path) as file:
            assert [key for key in file.attrs if f"`{key}`" not in page] == []


def test_the_sha256_are_made_as_the_page_says():
    with h5py.File(STORED / "format1_run.h5") as file:
        stored = dict(zip(file["digests/path"].asstr()[()], file["digests/sha256"].asstr()[()], strict=True))
        loss = file["train/loss"][()]
        assert stored["train/loss"] == hashlib.sha256(b"<f4(40,):" + loss.astype("<f4").tobytes()).hexdigest()
        assert stored["@name"] == hashlib.sha256(b"text:tiny").hexdigest()
        lines = "\n".join(f"{path} {stored[path]}" for path in sorted(stored))
        assert file.attrs["digest"] == hashlib.sha256(lines.encode()).hexdigest()


def test_the_readme_reads_a_file_with_h5py_alone_and_shows_what_comes_out(monkeypatch):
    readme = (ROOT / "README.md").read_text()
    code, shown = re.search(r"```python\n(import h5py.*?)```\n\n```text\n(.*?)```", readme, re.DOTALL).groups()
    assert len(code.strip().splitlines()) <= 10
    assert "hpcvision" not in code.replace("hpcvision/", "")
    monkeypatch.chdir(ROOT)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    assert said.getvalue() == shown


def test_the_job_of_a_winner_that_the_readme_shows_is_the_winner(tmp_path):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from hpcvision.config import apply.*?)```", readme, re.DOTALL)
    (tmp_path / "final.py").write_text(code.replace("runs/addnist_cnn-sweep", str(STORED / "format1_sweep.h5")))
    sweep = load_sweep(STORED / "format1_sweep.h5")
    changes = differences(sweep.run(sweep.winner).config, load_job(str(tmp_path / "final.py")))
    assert set(changes) == {"name", "data.train_on"}


@pytest.mark.parametrize("command", [["h5ls", "-r"], ["h5dump", "-H"]])
@pytest.mark.parametrize("name", ["format1_run", "format1_sweep"])
def test_files_open_with_the_tools_of_hdf5(command, name):
    if shutil.which(command[0]) is None:
        if "hdf5" in os.environ.get("HPCVISION_REQUIRE", "").split(","):
            pytest.fail("HPCVISION_REQUIRE names hdf5, but h5ls is not here: apt-get install hdf5-tools")
        pytest.skip("needs h5ls and h5dump: apt-get install hdf5-tools")
    result = subprocess.run([*command, STORED / f"{name}.h5"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "loss" in result.stdout
