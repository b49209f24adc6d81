"""Mistyped settings and damaged data: one line, exit code 2, nothing started, and all files as they were.

The runs folders of these tests have quotes, spaces, `$` and `&` in their names, so every run also proves that these
work.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from real_processes import cut, files_below, flip, hpcvision, refusal

from hpcvision import data
from hpcvision.config.data import SOURCE_SHAPES, DataConfig
from hpcvision.data.splits import Split, save_prepared

# --- settings ---


@pytest.fixture(scope="module")
def mistaken(stopped: Path, workplace: Path) -> tuple[Path, dict[str, str]]:
    """A runs folder with an unfinished run in it, and all its bytes."""
    runs = workplace / "mistaken"
    shutil.copytree(stopped.parent, runs)
    return runs, files_below(runs)


SHELL = "x'; touch X; $(touch X) `touch X` \" & touch X"
LINES = "cifar100\nhpcvision: all is well"


MISTAKES = [
    ("optim.learning_rat=1", "unknown key 'optim.learning_rat'; did you mean 'optim.learning_rate'?"),
    ("steps=9", "unknown key 'steps'; did you mean 'train.steps'?"),
    ("optim\nlearning_rate=1", r"unknown key 'optim\nlearning_rate'; did you mean 'optim.learning_rate'?"),
    ("train.steps", "'train.steps' is not key=value; write for example optim.learning_rate=3e-4"),
    ("train.steps=many", "train.steps='many': "),
    ("train.steps=1.5", "train.steps=1.5: "),
    ("train.channels_last=maybe", "train.channels_last='maybe': "),
    ("optim.betas=0.9", "optim.betas=0.9: "),
    ("train.steps=10001", "train.steps=10,001 is over the cap of 10,000 optimisation steps"),
    ("model.width=2", "baby_mobilenet has 352,892 parameters, the cap for task.kind=classify is below 100,000"),
    ("--processes=7", "train.global_batch_size=16 cannot be split over 7 processes; choose a multiple of 7"),
    (f"name={SHELL}", f"name={SHELL!r}: "),
    (f"name={LINES}", f"name={LINES!r}: "),
    (f"data.source={SHELL}", f"data.source={SHELL!r}: "),
    (f"data.source={LINES}", f"data.source={LINES!r}: "),
    (f"model.kind={LINES}", f"model.kind={LINES!r} does not exist; choose one of "),
]


@pytest.mark.parametrize("word, said", MISTAKES, ids=[word.partition("=")[0] for word, _ in MISTAKES])
def test_a_mistake_is_one_line_with_the_value_and_touches_no_file_even_with_fresh(
    mistaken, jobs: dict[str, Path], word: str, said: str
) -> None:
    runs, before = mistaken
    assert refusal(hpcvision("train", jobs["tiny"], word, "--fresh", runs=runs)).startswith(f"hpcvision: {said}")
    assert files_below(runs) == before


@pytest.mark.parametrize("word", ["train.steps=many", f"name={SHELL}"])
def test_a_mistake_is_not_submitted(mistaken, jobs: dict[str, Path], word: str) -> None:
    runs, before = mistaken
    said = word.partition("=")[2]
    assert repr(said) in refusal(hpcvision("submit", jobs["tiny"], word, "--fresh", runs=runs))
    assert files_below(runs) == before


@pytest.mark.parametrize("job", [f"no{SHELL}", f"no{LINES}", f"no{LINES}.py"])
def test_a_job_that_does_not_exist_is_one_line_whatever_its_name(mistaken, job: str) -> None:
    runs, before = mistaken
    assert repr(job)[1:-1] in refusal(hpcvision("train", job, runs=runs))
    assert files_below(runs) == before


def test_a_job_file_with_a_syntax_error_is_one_line_with_its_place(mistaken, tmp_path: Path) -> None:
    runs, before = mistaken
    job = tmp_path / "broken.py"
    job.write_text("from hpcvision.config import *\n\ndef config(:\n")
    assert refusal(hpcvision("train", job, runs=runs)).startswith(f"hpcvision: {job}, line 3: ")
    assert files_below(runs) == before


def test_a_path_with_a_newline_is_told_in_one_line(mistaken, jobs: dict[str, Path], tmp_path: Path) -> None:
    runs, _ = mistaken
    place = tmp_path / "no\nfolder"
    place.touch()
    said = refusal(hpcvision("train", jobs["tiny"], "--runs", place, runs=runs))
    assert r"no\nfolder" in said


# --- data files ---


def refused_for_data(job: str, folder: Path, runs: Path) -> str:
    """What `train` says with the data in `folder`, after a look that it changed nothing there and began no run."""
    before = files_below(folder)
    said = refusal(hpcvision("train", job, "model.width=0.1", runs=runs, HPCVISION_DATA=str(folder)))
    assert files_below(folder) == before
    assert list(runs.iterdir()) == []
    return said


@pytest.mark.parametrize(
    "job, file, fetch",
    [
        ("cifar100_baby_mobilenet", "cifar-100-python/meta", "hpcvision data fetch cifar100"),
        ("addnist_cnn", "MNIST/raw/train-images-idx3-ubyte", "hpcvision data fetch addnist"),
    ],
)
def test_a_source_file_with_another_content_is_named_with_its_md5(
    tmp_path: Path, workplace: Path, job: str, file: str, fetch: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not what was published")
    said = refused_for_data(job, tmp_path, workplace / f"other content {job}")
    assert f"{path} has MD5 a7bbfc26f084ba5ee3bc3bfaf2d6d735, expected " in said
    assert f"`{fetch}`" in said


def test_an_official_addnist_array_that_is_cut_short_is_named(tmp_path: Path, workplace: Path) -> None:
    path = tmp_path / "addnist" / "train_x.npy"
    path.parent.mkdir()
    np.save(path, np.zeros((9, 3, 28, 28), np.float32))
    cut(path)
    said = refused_for_data("addnist_cnn", tmp_path, workplace / "cut official")
    assert f"cannot read {path} " in said
    assert "`hpcvision data fetch addnist`" in said


def drawn(side: int, classes: int, per_class: int) -> Split:
    """Random images."""
    stream = torch.Generator().manual_seed(per_class)
    labels = torch.arange(classes).repeat(per_class)
    return Split(torch.randint(0, 256, (len(labels), 3, side, side), generator=stream, dtype=torch.uint8), labels)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with prepared arrays alone, of both data sets, which hpcvision takes."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPCVISION_DATA", str(folder))
        parts = {"train": drawn(32, 100, 51), "test": drawn(32, 100, 1)}
        save_prepared("cifar100", parts, facts={"class_names": [f"class {label}" for label in range(100)]})
        parts = {split: drawn(28, 20, 2) for split in ("train", "validation", "test")}
        save_prepared("addnist_regenerated", parts, facts={})
        for source in ("cifar100", "addnist"):
            image_size, num_classes = SOURCE_SHAPES[source]
            split = data.load(DataConfig(source=source), "train", image_size=image_size, num_classes=num_classes)
            assert len(split.labels) > 0
    return folder


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize(
    "job, name, kind",
    [
        ("cifar100_baby_mobilenet", "cifar100", "images"),
        ("cifar100_baby_mobilenet", "cifar100", "labels"),
        ("addnist_cnn", "addnist_regenerated", "images"),
    ],
)
def test_a_damaged_prepared_array_without_its_source_is_named_with_the_command_that_fetches_it(
    prepared: Path, tmp_path: Path, workplace: Path, job: str, name: str, kind: str, damage: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "data")
    damage(folder / "prepared" / f"{name}.{kind}.npy")
    said = refused_for_data(job, folder, workplace / f"{damage.__name__} {name} {kind}")
    assert str(folder / "prepared" / name) in said
    assert f"{kind}.npy" in said
    assert f"`hpcvision data fetch {name.partition('_')[0]}`" in said


REAL = Path(os.environ.get("HPCVISION_DATA") or "data")
needs_cifar100 = pytest.mark.skipif(
    not (REAL / "cifar-100-python" / "train").is_file() or not (REAL / "prepared" / "cifar100.json").is_file(),
    reason="needs CIFAR-100: set HPCVISION_DATA to where `hpcvision data fetch cifar100` put it",
)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A data folder with links to the real CIFAR-100 files."""
    source = tmp_path / "cifar-100-python"
    source.mkdir()
    for path in (REAL / "cifar-100-python").absolute().iterdir():
        (source / path.name).symlink_to(path)
    return tmp_path


@needs_cifar100
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_file_of_the_real_cifar100_is_named_with_both_md5(
    real: Path, workplace: Path, damage: Callable[[Path], None]
) -> None:
    path = real / "cifar-100-python" / "train"
    path.unlink()
    shutil.copy(REAL / "cifar-100-python" / "train", path)
    damage(path)
    said = refused_for_data("cifar100_baby_mobilenet", real, workplace / f"{damage.__name__} source")
    assert f"{path} has MD5 " in said
    assert "expected 16019d7e3df5f24257cddd939b257f8d; delete it and run `hpcvision data fetch cifar100`" in said


@needs_cifar100
def test_a_damaged_prepared_array_is_made_anew_from_the_real_files(real: Path, workplace: Path) -> None:
    shutil.copytree(REAL / "prepared", real / "prepared", ignore=shutil.ignore_patterns("addnist*"))
    flip(real / "prepared" / "cifar100.images.npy")
    words = ["cifar100_baby_mobilenet", "model.width=0.1", "train.steps=1", "train.global_batch_size=16"]
    result = hpcvision("train", *words, runs=workplace / "anew", HPCVISION_DATA=str(real))
    assert result.returncode == 0, result.stderr
    for path in (real / "prepared").iterdir():
        assert path.read_bytes() == (REAL / "prepared" / path.name).read_bytes(), path.name
