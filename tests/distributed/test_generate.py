"""`hpcvision sample`, `interpolate` and `evaluate` with real processes, and a small generator that has learnt."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from real_processes import (
    FinishedRun,
    end,
    files_below,
    hpcvision,
    only_run,
    ranks_below,
    refusal,
    start_command,
    wait_until,
)

from hpcvision.cli import main
from hpcvision.results.digests import broken_seals


def drawn(run: Path, *words: object, command: str = "sample", into: Path) -> dict[str, Any]:
    """The pictures that a command wrote, by the path of their group, and the attributes of each."""
    target = into / f"{len(list(into.iterdir()))}.h5"
    result = hpcvision(command, run, *words, "-o", target, runs=into)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(target), str(target.with_suffix(".png"))]
    assert target.with_suffix(".png").stat().st_size > 1000
    assert sorted(path.name for path in into.iterdir() if path.name.startswith(".generate")) == []
    with h5py.File(target) as file:
        assert broken_seals(file) == []
        return {
            f"{kind}/{name}": {key: value[()] for key, value in group.items()} | dict(group.attrs)
            for kind in ("samples", "interpolations", "strips")
            for name, group in file.get(kind, {}).items()
        }


def grey_levels_between(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_images_are_the_same_from_one_process_and_from_three(generated: FinishedRun, tmp_path: Path) -> None:
    options = ("--images", 5, "--seed", 3, "--classes", "7,9", "--steps", 4)
    one, three = (drawn(generated.folder, *options, "--processes", n, into=tmp_path) for n in (1, 3))
    assert grey_levels_between(one["samples/random"]["images"], three["samples/random"]["images"]) <= 1
    assert one["samples/random"]["labels"].tolist() == [7, 9, 7, 9, 7]
    assert one["samples/random"]["seeds"].tolist() == [3, 4, 5, 6, 7]


def test_a_second_drawing_overwrites_nothing(generated: FinishedRun, tmp_path: Path) -> None:
    archive = tmp_path / "results.h5"
    archive.write_bytes((generated.folder / "results.h5").read_bytes())
    for _ in range(2):  # guided, as the job drops labels
        words = ("--images", 2, "--guidance-scale", 2, "--processes", 1)
        assert hpcvision("sample", archive, *words, runs=tmp_path).returncode == 0
    names = sorted(path.name for path in (tmp_path / "generated").iterdir())
    assert names == [f"sample-raw-ddim-3-guided-2-seed-0{end}" for end in ("-2.h5", "-2.png", ".h5", ".png")]


def test_an_interpolation_ends_at_the_two_samples(generated: FinishedRun, tmp_path: Path) -> None:
    way = drawn(
        generated.folder, "--pairs", "3:8", "--points", 5, "--processes", 2, command="interpolate", into=tmp_path
    )["interpolations/slerp"]
    assert way["images"].shape == (1, 5, 16, 16, 3)
    assert way["labels"].tolist() == [[3, 8]]
    assert way["seeds"].tolist() == [[0, 1]]
    ends = drawn(generated.folder, "--classes", "3,8", "--images", 2, "--processes", 1, into=tmp_path)["samples/random"]
    assert grey_levels_between(way["images"][0, [0, -1]], ends["images"]) <= 1


def test_real_images_are_encoded_and_decoded_with_their_error(generated: FinishedRun, tmp_path: Path) -> None:
    words = ("--from-images", "3,17", "--steps", 25, "--points", 3, "--processes", 1)
    made = drawn(generated.folder, *words, command="interpolate", into=tmp_path)
    way, real = made["interpolations/slerp_of_real"], made["samples/real"]["images"]
    assert way["validation_images"].tolist() == made["samples/real"]["seeds"].tolist() == [3, 17]
    assert made["samples/real"]["real"]
    difference = way["images"][0, [0, -1]].astype(float) - real
    assert way["reconstruction_error"] == pytest.approx(np.sqrt(np.square(difference).mean((1, 2, 3))))


def test_a_real_image_is_noised_and_denoised_step_by_step(generated: FinishedRun, tmp_path: Path) -> None:
    strips = drawn(generated.folder, "--forward", "--images", 2, "--steps", 12, "--processes", 1, into=tmp_path)
    assert set(strips) == {f"strips/{name}" for name in ("noised", "noised_denoised", "noised_found_in_one_step")}
    noised = strips["strips/noised"]
    assert noised["images"].shape == (2, 10, 16, 16, 3)
    assert noised["timesteps"].tolist() == sorted(noised["timesteps"])
    assert (
        grey_levels_between(noised["images"][:, -1], strips["strips/noised_denoised"]["images"][:, 0]) <= 1
    )  # the way back begins where the way there ends


@pytest.mark.parametrize(
    "command, words, complaint",
    [
        ("sample", ["--steps", "1001"], "sample.steps=1001 is more than task.timesteps=1000"),
        ("sample", ["--sampler", "heunn"], "sample.sampler='heunn'"),
        ("sample", ["--eta", "0.5", "--sampler", "heun"], "sample.eta=0.5 is for sample.sampler=ddim, not heun"),
        ("sample", ["--classes", "sqare, checks"], "there is no class 'sqare'"),
        ("sample", ["--classes", "10"], "there is no class '10'"),
        ("sample", ["--weights", "ema"], "there are no 'ema' weights in the archive; choose from raw"),
        ("sample", ["-o", "picture.png"], "must end in .h5"),
        ("sample", ["--guidance-interval", "1"], "write two numbers with a comma, such as 0.2,2.5"),
        ("interpolate", [], "give either --pairs"),
        ("interpolate", ["--pairs", "4:4"], "'4:4' is one class twice; give two different classes"),
        ("interpolate", ["--pairs", "4"], "'4' is no pair"),
        ("interpolate", ["--from-images", "5,5"], "is one image twice"),
        ("interpolate", ["--pairs", "4:5", "--method", "cubic"], "choose slerp or linear"),
        ("evaluate", ["--images", "25"], "cannot show 10 classes equally often; try 20"),
        ("evaluate", ["--images", "200"], "no features are shipped for data.source=synthetic"),
        ("evaluate", ["--against", "tset"], "there is no split 'tset'; choose from train, validation, test"),
        ("evaluate", ["--steps-grid", "5,many"], "write whole numbers above 0 with commas"),
        ("evaluate", ["--steps-grid", "5,2000"], "sample.steps=2000 is more than task.timesteps=1000"),
        ("evaluate", ["--images", "200", "--extractor", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(
    generated: FinishedRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: list[str],
    complaint: str,
) -> None:
    before = files_below(generated.folder)
    monkeypatch.setattr(sys, "argv", ["hpcvision", command, str(generated.folder), *words, "--processes", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert complaint in line
    assert files_below(generated.folder) == before


def test_a_classifier_draws_no_images(finished: FinishedRun, tmp_path: Path) -> None:
    result = hpcvision("sample", finished.folder, runs=tmp_path)
    assert "holds a classifier, which draws no images" in refusal(result)


def has_met(rank: int) -> bool:
    """Whether the process has a socket, which it only has to the other ranks."""
    with contextlib.suppress(OSError):
        return any(str(item.readlink()).startswith("socket:") for item in Path(f"/proc/{rank}/fd").iterdir())
    return False


def test_ctrl_c_ends_a_drawing_and_leaves_nothing(generated: FinishedRun, tmp_path: Path) -> None:
    words = ("sample", generated.folder, "--images", 4000, "--steps", 500, "--processes", 2, "-o", tmp_path / "x.h5")
    process = start_command(*words, runs=tmp_path)
    wait_until(lambda: len([rank for rank in ranks_below(process.pid) if has_met(rank)]) == 2, "the meeting")
    subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
    result = end(process)
    assert result.returncode not in (0, -signal.SIGINT)
    assert list(tmp_path.iterdir()) == []
    assert result.stderr.splitlines()[-1].startswith("hpcvision: ")
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's classifier and generator, and the generator as it was before its first step counted."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("classifier", "generator", "untrained")}
    generator = ["demo_diffusion", "sample.images=0", "sample.interpolation_pairs=0"]
    jobs = {
        "classifier": ["demo_classifier"],
        "generator": generator,
        "untrained": [*generator, "train.steps=1", "optim.learning_rate=1e-9"],
    }
    for name, words in jobs.items():
        result = hpcvision("train", *words, "--processes", 2, runs=places[name])
        assert result.returncode == 0, result.stderr
    return {name: only_run(place) for name, place in places.items()}


def scores_of(run: Path) -> dict[str, Any]:
    with h5py.File(run / "results.h5") as file:
        assert broken_seals(file) == []
        (group,) = (group for name, group in file["scores"].items() if name.startswith("features_"))
        values = {name: item.attrs["mean"] for name, item in group.items() if "mean" in item.attrs}
        return values | dict(group.attrs) | {"test_reads": file.attrs["test_reads"], "sets": len(group["frechet"])}


@pytest.mark.long
def test_the_demos_generator_has_learnt_what_it_was_shown(learnt: dict[str, Path]) -> None:
    found = {}
    for name, sets in (("generator", 3), ("untrained", 1)):
        words = ("--images", 200, "--sets", sets, "--weights", "ema", "--against", "test", "--processes", 2)
        extractor = ("--extractor", learnt["classifier"])
        result = hpcvision("evaluate", learnt[name], *words, *extractor, runs=learnt[name].parent)
        assert result.returncode == 0, result.stderr
        assert "no FID" in result.stdout
        found[name] = scores_of(learnt[name])
    assert found["generator"]["frechet"] <= 0.2 * found["untrained"]["frechet"]
    assert found["generator"]["classifier_agreement"] >= 0.5
    assert found["generator"]["reference_classifier_agreement"] > 0.9
    # The passport: what two scores must have in common.
    passport = {"images": 200, "sampler": "heun", "steps": 21, "weights": "ema", "reference": "test", "sets": 3}
    assert {key: found["generator"][key] for key in passport} == passport
    assert len(found["generator"]["extractor_sha256"]) == len(found["generator"]["reference_sha256"]) == 64
    assert found["generator"]["test_reads"] == 2  # by the run itself, and by this evaluation
