"""Archives as people read them: typed, lazily, without torch, and never more than what the file itself holds."""

import dataclasses
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcvision.config.run import flatten
from hpcvision.errors import CapExceeded, UserError
from hpcvision.models import build_model
from hpcvision.results import load, load_model, load_sweep
from hpcvision.results.merge import merge
from hpcvision.results.reader import read_summary
from hpcvision.results.record import Score
from hpcvision.results.sweeps import Trial, write_sweep
from hpcvision.results.writer import add_scores, write_results
from hpcvision.verify import verify

STORED = Path(__file__).parents[1] / "data"
DAMAGED = int(os.environ.get("HPCVISION_REPEATS", "5")) * 8


@pytest.fixture
def run(archive):
    """The record's run, loaded."""
    return load(archive)


def test_a_run_is_what_was_written(run, make_record, config):
    record = make_record()
    assert (run.name, run.fingerprint, run.track, run.finished) == ("tiny", config.fingerprint, "capped", True)
    assert (run.parameters, run.steps, run.test_reads) == (321, 40, 1)
    assert run.config == config
    assert run.caps == record.caps
    assert run.provenance == record.provenance
    assert run.train["loss"].tolist() == pytest.approx([row["loss"] for row in record.train])
    assert run.train.columns[0] == "step"
    assert run.evaluate["accuracy"].tolist() == [row["accuracy"] for row in record.evaluate]
    assert run.ledger["job_id"].tolist() == ["job-0", "job-1"]
    for kind, weights in record.weights.items():
        assert {name: values.tolist() for name, values in run.weights[kind].items()} == {
            name: values.tolist() for name, values in weights.items()
        }
    assert (run.classes.confusion == record.confusion).all()
    assert run.classes.names == record.class_names


def test_a_score_has_its_interval_and_its_passport(run):
    score = run.scores["test"]
    accuracy = score.values["accuracy"]
    assert (accuracy.mean, accuracy.low, accuracy.high, accuracy.higher_is_better) == (0.75, 0.7, 0.8, True)
    assert score.main == "accuracy"
    assert score.passport["images_sha256"] == "0" * 64
    assert score.passport["split"] == "test"


def test_one_image_is_read_alone(run, make_record, monkeypatch):
    images = make_record().samples["random"].images
    stored = run.samples["random"]
    read = []
    real = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, key, **more: read.append(key) or real(self, key, **more)
    )
    assert (stored[3] == images[3]).all()
    assert read == [3]
    assert (len(stored), stored.shape) == (11, images.shape)
    assert (np.asarray(stored) == images).all()
    assert stored.seeds.tolist() == list(range(100, 111))
    assert stored.attributes["sampler"] == "ddim"


def test_rows_between_images_have_their_ends(run):
    rows = run.interpolations["slerp"]
    assert rows.shape == (2, 4, 6, 6, 3)
    assert rows.labels.tolist() == [[0, 1], [2, 3]]
    assert rows.seeds is None


def test_reading_a_run_needs_no_torch(archive):
    code = (
        "import sys, hpcvision.results as r\n"
        f"run = r.load({str(archive)!r})\n"
        "run.train, run.scores, run.weights, run.samples['random'][0], run.classes\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["raw", "ema", None])
def test_a_model_is_loaded_with_the_weights_that_are_asked_for(kind, archive, make_record, config):
    record = make_record()
    expected = build_model(config.model).eval()
    chosen = record.weights[kind or "raw"]
    expected.load_state_dict({name: torch.from_numpy(values) for name, values in chosen.items()})
    images = torch.rand(3, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(load_model(archive, kind)(images), expected(images))


def test_weights_that_do_not_fit_are_refused_in_one_line(make_record, tmp_path):
    record = make_record()
    raw = dict(record.weights["raw"])
    name = next(iter(raw))
    raw[name] = raw[name][..., :-1]
    write_results(tmp_path / "a.h5", dataclasses.replace(record, weights={"raw": raw}))
    with pytest.raises(UserError, match=r"weights of .*a\.h5 do not fit addnist_cnn: .*size mismatch") as refused:
        load_model(tmp_path / "a.h5")
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="has no 'ema' weights; choose from raw"):
        load_model(tmp_path / "a.h5", "ema")


def test_a_file_over_its_caps_is_refused(make_record, tmp_path):
    write_results(tmp_path / "a.h5", make_record(parameters=100_000))
    with pytest.raises(CapExceeded):
        load(tmp_path / "a.h5")


@pytest.mark.parametrize("link", [h5py.ExternalLink("secret.h5", "/passwords"), h5py.SoftLink("/train/loss")])
@pytest.mark.parametrize("place", ["weights/raw/extra", "extra"])
def test_links_to_other_places_are_not_followed(link, place, archive):
    with h5py.File(archive.with_name("secret.h5"), "w") as file:
        file["passwords"] = [1, 2, 3]
    with h5py.File(archive, "r+") as file:
        file[place] = link
    for read in (load, read_summary, lambda path: list(verify(path))):
        with pytest.raises(UserError, match=r"has a link to another place at .*extra; links are refused"):
            read(archive)


def test_values_that_lie_in_another_file_are_not_read(archive):
    (archive.parent / "raw.bin").write_bytes(b"secret!!" * 40)
    with h5py.File(archive, "r+") as file:
        del file["train/loss"]
        stored = [(str(archive.parent / "raw.bin"), 0, 320)]
        file.create_dataset("train/loss", (40,), "f8", external=stored)
    with pytest.raises(UserError, match="keeps the values of /train/loss in another file; such are refused"):
        _ = load(archive).train


def test_a_newer_format_is_refused_by_name(archive):
    with h5py.File(archive, "r+") as file:
        file.attrs["format"] = 99
    with pytest.raises(UserError, match="has format 99, this hpcvision reads up to 1; upgrade it"):
        load(archive)


def test_a_read_only_file_that_a_writer_has_locked_is_read(archive):
    archive.chmod(0o444)
    archive.parent.chmod(0o555)
    with archive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert load(archive).train["step"].iloc[-1] == 40
    archive.parent.chmod(0o755)


@pytest.mark.parametrize("reads, replacements", [(200, 20), pytest.param(1000, 100, marks=pytest.mark.long)])
def test_a_file_that_is_being_replaced_can_be_read_at_any_moment(make_record, tmp_path, reads, replacements):
    path, ended = tmp_path / "results.h5", threading.Event()
    write_results(path, make_record(steps=0))
    seen = []

    def look():
        while len(seen) < reads or not ended.is_set():
            run = load(path)
            seen.append(run.steps)
            assert len(run.train) == 40

    reader = threading.Thread(target=look)
    reader.start()
    for step in range(1, replacements + 1):
        write_results(path, make_record(steps=step))
    ended.set()
    reader.join()
    assert len(seen) >= reads
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


def damage(path, number):
    """Cut, flip bits in, empty or replace a file; what was done."""
    dice, content = random.Random(number), bytearray(path.read_bytes())
    kind = ("cut", "flipped", "empty", "text", "other")[number % 5]
    if kind == "cut":
        content = content[: dice.randrange(1, len(content))]
    elif kind == "flipped":
        for _ in range(dice.choice([1, 10, 1000])):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif kind == "empty":
        content = bytearray()
    elif kind == "text":
        content = bytearray(b"step,loss\n1,2\n")
    path.write_bytes(content)
    if kind == "other":
        path.unlink()
        with h5py.File(path, "w") as file:
            file["x"] = [1]
    return kind


@pytest.mark.parametrize("number", range(DAMAGED))
def test_a_damaged_file_is_one_clear_line_or_verified_as_changed(number, archive):
    kind = damage(archive, number)
    before = archive.read_bytes()
    told = ""
    try:
        findings = list(verify(archive))
        run = load(archive)
        _ = (
            run.train,
            run.evaluate,
            run.ledger,
            run.weights,
            run.classes,
            [images[()] for images in run.samples.values()],
        )
        # Bits that no content is in may be flipped without a change of any value.
        assert kind == "flipped" or any(finding.verdict == "FAIL" for finding in findings)
    except UserError as error:
        told = str(error)
    assert not told or (str(archive) in told and "\n" not in told and len(told) < 500), told
    assert archive.read_bytes() == before


def test_merge_goes_on_without_damaged_files_and_names_them(archive, make_record, tmp_path):
    other = make_record().config | {"seed": 5}
    write_results(tmp_path / "second.h5", make_record(config=other, fingerprint="5" * 12))
    shutil.copy(archive, tmp_path / "same.h5")
    (tmp_path / "cut.h5").write_bytes(archive.read_bytes()[:3000])
    paths = [archive, tmp_path / "cut.h5", tmp_path / "second.h5", tmp_path / "same.h5"]
    kept, doubled, refused = merge(paths, tmp_path / "all.h5")
    assert (kept, doubled) == (2, 1)
    assert [path for path, _ in refused] == [tmp_path / "cut.h5"]
    sweep = load_sweep(tmp_path / "all.h5")
    assert sweep.trials["seed"].tolist() == [0, 5]
    assert [run.digest for run in sweep.runs()] == [
        load(path).digest for path in sorted((archive, tmp_path / "second.h5"), key=lambda path: load(path).fingerprint)
    ]
    again = merge([tmp_path / "all.h5", archive], tmp_path / "again.h5")
    assert again == (2, 1, [])
    with pytest.raises(UserError, match="is one of the files to merge"):
        merge([tmp_path / "all.h5"], tmp_path / "all.h5")
    with pytest.raises(UserError, match=r"no run could be read \(.*cut\.h5"):
        merge([tmp_path / "cut.h5"], tmp_path / "none.h5")


def test_a_generator_has_the_names_of_its_classes_and_no_confusion_matrix(make_record, tmp_path):
    write_results(tmp_path / "a.h5", make_record(confusion=None, scores={"loss": 1.5}))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["classes/names"].asstr()[()].tolist() == make_record().class_names
    assert load(tmp_path / "a.h5").classes is None


def test_a_merged_trial_keeps_its_name_its_role_and_that_it_was_stopped(make_record, tmp_path):
    config = make_record().config
    trials = []
    for number, (status, role) in enumerate([("finished", "trial"), ("stopped", "trial"), ("finished", "seed")]):
        changes = {"fingerprint": str(number) * 12, "config": config | {"seed": number}}
        write_results(tmp_path / f"{number}.h5", make_record(finished=status == "finished", **changes))
        about = {"status": status, "role": role, "reason": f"reason {number}", "seed": number}
        size = {"parameters": 321, "steps": 40, "objective": 0.5, "overrides": {"seed": number}}
        archive = tmp_path / f"{number}.h5"
        trials.append(Trial(label=f"trial {number}", fingerprint=str(number) * 12, archive=archive, **about, **size))
    write_sweep(
        tmp_path / "sweep.h5",
        **{"name": "s", "base": config, "fingerprint": "f" * 12, "caps": {}, "provenance": {}, "facts": {}},
        **{"objective": "accuracy", "larger_is_better": True, "trials": trials, "rungs": [], "expected_best": []},
    )
    merge([tmp_path / "sweep.h5"], tmp_path / "all.h5")
    table = load_sweep(tmp_path / "all.h5").trials
    assert table["label"].tolist() == ["trial 0", "trial 1", "trial 2"]
    assert table["role"].tolist() == ["trial", "trial", "seed"]
    assert table["status"].tolist() == ["finished", "stopped", "finished"]
    assert table["reason"].tolist() == ["", "reason 1", ""]


def test_of_a_run_that_is_there_twice_the_finished_one_is_merged(make_record, tmp_path):
    write_results(tmp_path / "old.h5", make_record(finished=False, scores={}, steps=20))
    write_results(tmp_path / "new.h5", make_record())
    merge([tmp_path / "new.h5", tmp_path / "old.h5"], tmp_path / "all.h5")
    (run,) = load_sweep(tmp_path / "all.h5").runs()
    assert run.finished
    assert load_sweep(tmp_path / "all.h5").trials["objective"].tolist() == [pytest.approx(0.7 - 0.5 / 40)]


def test_archives_of_format_1_are_read_for_ever():
    run = load(STORED / "format1_run.h5")
    known = json.loads((STORED / "format1.json").read_text())
    assert run.digest == known["digest"]
    assert flatten(known["settings"]).items() <= flatten(run.settings).items()  # later versions have more settings
    assert run.train["loss"].tolist() == pytest.approx(known["loss"])
    assert {name: float(values.sum()) for name, values in run.weights["ema"].items()} == pytest.approx(known["sums"])
    assert run.samples["random"][3].sum() == known["pixels"]
    assert run.scores["features_test_ema_ddim_5"].values["frechet"].mean == known["frechet"]
    assert load_model(STORED / "format1_run.h5") is not None
    assert {finding.verdict for finding in verify(STORED / "format1_run.h5")} == {"PASS"}
    sweep = load_sweep(STORED / "format1_sweep.h5")
    assert sweep.trials["fingerprint"].tolist() == known["trials"]
    assert sweep.trials["objective"].tolist() == pytest.approx(known["objectives"])
    assert {finding.verdict for finding in verify(STORED / "format1_sweep.h5")} <= {"PASS", "SKIP"}


def test_scores_of_drawn_images_are_read_with_their_spread(archive):
    add_scores(
        archive, {"drawn": Score({"frechet": [1.0, 2.0, 3.0]}, {"extractor": "x", "steps": 5})}, reads_test=False
    )
    value = load(archive).scores["drawn"].values["frechet"]
    assert (value.mean, value.low, value.high, value.higher_is_better) == (2.0, 1.0, 3.0, False)
    assert load(archive).scores["drawn"].passport == {"extractor": "x", "steps": 5}


def test_values_in_other_files_are_neither_hashed_nor_merged(archive, tmp_path):
    (tmp_path / "raw.bin").write_bytes(b"secret!!" * 40)
    with h5py.File(archive, "r+") as file:
        file.create_dataset("more", (40,), "f8", external=[(str(tmp_path / "raw.bin"), 0, 320)])
        layout = h5py.VirtualLayout((40,), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (40,))
    for use in (lambda: list(verify(archive)), lambda: merge([archive], tmp_path / "all.h5")):
        with pytest.raises(UserError, match="keeps the values of /more in another file"):
            use()
    with h5py.File(archive, "r+") as file:
        del file["more"]
        file.create_virtual_dataset("more", layout)
    with pytest.raises(UserError, match="keeps the values of /more in another file"):
        load(archive)


def test_a_second_name_for_an_object_is_refused(archive):
    with h5py.File(archive, "r+") as file:
        file["samples/better"] = file["samples/random"]
    with pytest.raises(UserError, match="one object under two names"):
        load(archive)


@pytest.mark.parametrize("size", [0, 2**62, 24])
def test_a_wrong_size_in_a_heap_of_texts_is_told_and_not_searched_for_ever(size, archive):
    content = bytearray(archive.read_bytes())
    start = content.find(b"GCOL\x01\0\0\0")
    content[start + 24 : start + 32] = size.to_bytes(8, "little")
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \(the texts in it cannot be read\)"):
        load(archive)


def test_one_broken_run_of_a_sweep_does_not_keep_the_others_from_being_merged(tmp_path):
    path = Path(shutil.copy(STORED / "format1_sweep.h5", tmp_path / "sweep.h5"))
    with h5py.File(path, "r+") as file:
        name = sorted(file["runs"])[0]
        place = file[f"runs/{name}/samples/random/images"].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 12] ^= 255
    path.write_bytes(content)
    kept, _, refused = merge([path], tmp_path / "all.h5")
    assert kept == 1
    assert "samples/random/images cannot be read" in refused[0][1]


def test_a_merge_replaces_no_run_and_takes_paths_that_are_no_text(archive, tmp_path):
    with pytest.raises(UserError, match="is there and no sweep, so it is not replaced"):
        merge([STORED / "format1_sweep.h5"], archive)
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    shutil.copy(archive, folder / "results.h5")
    merge([folder / "results.h5"], tmp_path / "all.h5")
    merge([archive], tmp_path / "all.h5")
    assert load_sweep(tmp_path / "all.h5").search == "merged"


def test_of_two_finished_copies_the_one_with_more_scores_is_merged(archive, tmp_path):
    shutil.copy(archive, tmp_path / "plain.h5")
    add_scores(archive, {"drawn": Score({"frechet": [1.0]}, {"extractor": "x"})}, reads_test=False)
    merge([tmp_path / "plain.h5", archive], tmp_path / "all.h5")
    (run,) = load_sweep(tmp_path / "all.h5").runs()
    assert "drawn" in run.scores


def test_weights_of_another_byte_order_make_the_same_model(archive):
    images = torch.rand(3, 3, 28, 28)
    with torch.no_grad():
        expected = load_model(archive)(images)
    with h5py.File(archive, "r+") as file:
        for name, item in dict(file["weights/raw"].items()).items():
            values, description = item[()], item.attrs["description"]
            del file["weights/raw"][name]
            file["weights/raw"].create_dataset(name, data=values.astype(">f4")).attrs["description"] = description
    with torch.no_grad():
        assert torch.equal(load_model(archive)(images), expected)


def test_settings_that_are_younger_than_a_file_have_the_values_they_had(archive):
    with h5py.File(archive, "r+") as file:
        settings = json.loads(file.attrs["config_json"])
        del settings["train"]["cuda_graph"]
        file.attrs["config_json"] = json.dumps(settings)
    assert load(archive).settings["train"]["cuda_graph"] is True
    assert read_summary(archive).config["train"]["cuda_graph"] is True


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.__setitem__("config_json", "[1]"),
        lambda file: file.attrs.__setitem__("data_json", "[]"),
        lambda file: file.attrs.__setitem__("provenance_json", "3"),
        lambda file: file["train"].__delitem__("loss"),
        lambda file: file["train"].__delitem__("step"),
    ],
)
def test_a_file_that_lacks_something_is_one_line(change, archive):
    with h5py.File(archive, "r+") as file:
        change(file)
    with pytest.raises(UserError, match="is damaged"):
        _ = load(archive).train
