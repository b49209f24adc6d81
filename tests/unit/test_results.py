"""results.h5 holds the whole run, opens with h5py alone, and every changed value in it is found."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch

from hpcvision.config import RunConfig, flatten
from hpcvision.errors import CapExceeded, UserError
from hpcvision.models import build_model
from hpcvision.results.digests import broken_seals
from hpcvision.results.files import open_archive, write_archive
from hpcvision.results.reader import read_curves, read_images, read_summary
from hpcvision.results.writer import write_results


@pytest.fixture
def file(archive):
    """The archive, opened with h5py and nothing else."""
    with h5py.File(archive, "r") as opened:
        yield opened


@pytest.fixture
def draft(archive):
    """The archive opened for changes that never reach the disk."""
    with h5py.File(archive, "r+", driver="core", backing_store=False) as opened:
        yield opened


def datasets_of(file):
    found = {}
    file.visititems(lambda path, item: found.update({path: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def attributes_of(file):
    owners = {"": file}
    file.visititems(lambda path, item: owners.update({path: item}))
    return [(path, item, name) for path, item in owners.items() for name in item.attrs]


def changed(value):
    """The value with its last character, or one bit of its last number, changed."""
    if isinstance(value, str | bytes):
        return value[:-1] + (b"#" if isinstance(value, bytes) else "#")
    array = np.array(value)
    if array.dtype.kind == "O":
        array.flat[-1] = changed(array.flat[-1])
    elif array.dtype.kind == "b":
        array.flat[-1] = not array.flat[-1]
    else:
        array.reshape(-1)[-1:].view(np.uint8)[0] ^= 1
    return array


def test_the_root_says_what_the_file_is_and_which_run_it_holds(file, config):
    attributes = dict(file.attrs)
    assert attributes["format"] == 1
    assert attributes["kind"] == "run"
    assert attributes["name"] == "tiny"
    assert attributes["fingerprint"] == config.fingerprint
    assert attributes["parameters"] == 321
    assert attributes["steps"] == 40
    assert bool(attributes["finished"]) is True
    assert attributes["test_reads"] == 1


def test_the_configuration_can_be_restored_from_the_root(file, config):
    assert RunConfig.model_validate_json(file.attrs["config_json"]) == config


def test_caps_and_provenance_are_json_at_the_root(file, make_record):
    assert json.loads(file.attrs["caps_json"]) == make_record().caps
    assert json.loads(file.attrs["provenance_json"]) == make_record().provenance


def test_every_setting_is_an_attribute_of_config(file, config):
    wanted = flatten(config.model_dump(mode="json"))
    assert set(file["config"].attrs) == set(wanted)
    assert file["config"].attrs["optim.learning_rate"] == wanted["optim.learning_rate"]
    assert file["config"].attrs["optim.gradient_clip"] == "none"
    assert list(file["config"].attrs["optim.betas"]) == [0.9, 0.999]


@pytest.mark.parametrize(
    "path, kind",
    {
        "train/step": "i8",
        "train/loss": "f4",
        "train/learning_rate": "f4",
        "train/seconds": "f8",
        "train/images_per_second": "f4",
        "train/accuracy": "f4",
        "evaluate/step": "i8",
        "evaluate/split": "O",
        "evaluate/loss": "f8",
        "evaluate/accuracy": "f8",
        "ledger/job_id": "O",
        "ledger/restart": "i8",
        "ledger/world_size": "i8",
        "ledger/host": "O",
        "ledger/commit": "O",
        "ledger/from_step": "i8",
        "ledger/to_step": "i8",
        "ledger/reason": "O",
        "classes/confusion": "i8",
        "classes/accuracy": "f4",
        "classes/names": "O",
        "samples/random/images": "u1",
        "samples/random/labels": "i8",
        "samples/random/seeds": "i8",
        "interpolations/slerp/images": "u1",
        "interpolations/slerp/labels": "i8",
    }.items(),
)
def test_every_table_of_the_format_is_there_with_its_type(file, path, kind):
    assert file[path].dtype == np.dtype(kind)


def test_every_dataset_has_a_description(file):
    assert [path for path, item in datasets_of(file).items() if not item.attrs.get("description")] == []


def test_the_curves_are_the_ones_that_were_written(archive, make_record):
    train, evaluate = read_curves(archive)
    record = make_record()
    for name in ("step", "loss", "accuracy", "learning_rate", "seconds", "images_per_second"):
        wanted = [row[name] for row in record.train]
        np.testing.assert_allclose(train[name], wanted, rtol=1e-6)
    for name in ("step", "split", "weights", "loss", "accuracy"):
        assert list(evaluate[name]) == [row[name] for row in record.evaluate]


def test_the_evaluations_say_which_way_is_better(file):
    assert bool(file["evaluate/accuracy"].attrs["higher_is_better"]) is True
    assert bool(file["evaluate/loss"].attrs["higher_is_better"]) is False


def test_the_ledger_has_one_row_per_stay(file, make_record):
    for name in ("job_id", "host", "commit", "reason"):
        assert list(file[f"ledger/{name}"].asstr()) == [row[name] for row in make_record().ledger]
    assert list(file["ledger/to_step"]) == [20, 40]


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_the_weights_make_the_same_network_again(file, config, kind):
    images = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    original = build_model(config.model, seed={"raw": 0, "ema": 1}[kind])
    again = build_model(RunConfig.model_validate_json(file.attrs["config_json"]).model, seed=99)
    again.load_state_dict({name: torch.from_numpy(item[()]) for name, item in file[f"weights/{kind}"].items()})
    assert torch.equal(again(images), original(images))


def test_the_accuracy_of_a_class_is_the_diagonal_share_of_its_row(file):
    confusion = file["classes/confusion"][()]
    shares = [row[number] / row.sum() for number, row in enumerate(confusion)]
    np.testing.assert_allclose(file["classes/accuracy"], shares, rtol=1e-6)


def test_a_class_without_images_has_no_accuracy(make_record, tmp_path):
    confusion = np.eye(20, dtype=np.int64)
    confusion[3] = 0
    write_results(tmp_path / "x.h5", make_record(confusion=confusion))
    with h5py.File(tmp_path / "x.h5") as file:
        assert np.isnan(file["classes/accuracy"][3])
        assert file["classes/accuracy"][4] == 1


def test_pictures_come_back_as_they_were_ready_for_imshow(archive, make_record):
    found, record = read_images(archive), make_record()
    assert np.array_equal(found["samples/random"], record.samples["random"].images)
    assert np.array_equal(found["interpolations/slerp"], record.interpolations["slerp"].images)


def test_one_picture_is_one_compressed_chunk(file):
    assert file["samples/random/images"].chunks == (1, 6, 6, 3)
    assert file["interpolations/slerp/images"].chunks == (1, 1, 6, 6, 3)
    assert file["samples/random/images"].compression == "gzip"


def test_samples_and_interpolations_say_how_they_were_drawn(file):
    assert file["samples/random"].attrs["sampler"] == "ddim"
    assert file["samples/random"].attrs["weights"] == "ema"
    assert file["interpolations/slerp"].attrs["method"] == "slerp"


def test_the_summary_holds_the_scores_and_the_split_they_are_of(archive, make_record):
    summary = read_summary(archive)
    assert summary.scores == make_record().scores
    assert summary.scored_split == "test"
    assert (summary.name, summary.parameters, summary.steps, summary.finished) == ("tiny", 321, 40, True)
    assert summary.data == "synthetic digits"


def test_scores_of_the_validation_split_are_not_taken_for_test_scores(make_record, tmp_path):
    write_results(tmp_path / "x.h5", make_record(scored_split="validation", test_reads=0))
    assert read_summary(tmp_path / "x.h5").scored_split == "validation"
    with h5py.File(tmp_path / "x.h5") as file:
        assert list(file["scores"]) == ["validation"]
        assert "validation" in file["classes/confusion"].attrs["description"]


def test_a_run_at_its_first_checkpoint_has_an_archive_too(make_record, tmp_path):
    empty = {"train": [], "evaluate": [], "scores": {}, "confusion": None, "samples": {}, "interpolations": {}}
    write_results(tmp_path / "x.h5", make_record(**empty, finished=False))
    summary = read_summary(tmp_path / "x.h5")
    assert not summary.finished
    assert summary.scores == {}
    assert [len(table) for table in read_curves(tmp_path / "x.h5")] == [0, 0]


def test_a_file_as_it_was_written_has_no_broken_seal(file):
    assert broken_seals(file) == []


def test_a_changed_value_in_any_dataset_is_found_and_named(draft):
    for path, item in datasets_of(draft).items():
        if path.startswith("digests/"):
            continue
        before = item[()]
        item[...] = changed(before)
        assert broken_seals(draft) == [path]
        item[...] = before
    assert broken_seals(draft) == []


def test_a_changed_value_in_any_attribute_is_found_and_named(draft):
    for path, item, name in attributes_of(draft):
        if path.startswith("digests"):  # the table cannot seal its own descriptions
            continue
        before = item.attrs[name]
        item.attrs[name] = changed(before)
        assert broken_seals(draft) == [f"{path}@{name}"]
        item.attrs[name] = before
    assert broken_seals(draft) == []


@pytest.mark.parametrize("column", ["path", "sha256"])
def test_a_changed_digest_is_found(draft, column):
    item = draft[f"digests/{column}"]
    values = item[()]
    for row in range(0, len(values), 5):
        item[row] = changed(values[row])
        assert "@digest" in broken_seals(draft)
        item[row] = values[row]


def test_a_digest_that_was_made_to_fit_a_forged_value_is_found(draft):
    from hpcvision.results.digests import digests_of

    draft["train/loss"][0] = 0
    paths = list(draft["digests/path"].asstr())
    draft["digests/sha256"][paths.index("train/loss")] = digests_of(draft)["train/loss"]
    assert broken_seals(draft) == ["@digest"]


def test_what_was_removed_is_found_and_named(draft):
    del draft["train/loss"]
    assert "train/loss" in broken_seals(draft)


def test_what_was_added_is_found_and_named(draft):
    draft["train/more"] = [1]
    draft.attrs["more"] = 1
    assert broken_seals(draft) == ["@more", "train/more"]


@pytest.mark.parametrize("name", ["digest", "digests"])
def test_a_missing_seal_is_found(draft, name):
    if name == "digest":
        del draft.attrs["digest"]
    else:
        del draft["digests"]
    assert broken_seals(draft) != []


@pytest.mark.parametrize("disguise", [lambda v: v.view("f8"), lambda v: v.reshape(2, -1), lambda v: v.astype("i4")])
def test_the_same_bytes_or_values_as_another_type_or_shape_are_a_change(draft, disguise):
    values = draft["train/step"][()]
    description = dict(draft["train/step"].attrs)
    del draft["train/step"]
    draft["train/step"] = disguise(values)
    draft["train/step"].attrs.update(description)
    assert broken_seals(draft) == ["train/step"]


@pytest.mark.parametrize("read", [read_summary, read_curves, read_images])
def test_a_newer_format_is_refused_by_its_number(archive, read):
    with h5py.File(archive, "r+") as file:
        file.attrs["format"] = 2
    with pytest.raises(UserError, match="has format 2, this hpcvision reads up to 1; upgrade it"):
        read(archive)


def test_an_archive_of_another_kind_is_refused_by_its_name(archive):
    with h5py.File(archive, "r+") as file:
        file.attrs["kind"] = "sweep"
    with pytest.raises(UserError, match=r"is not an archive of a run \(kind='sweep'\)"):
        read_summary(archive)


@pytest.mark.parametrize("content", [b"", b"text\n" * 1000])
def test_a_file_that_is_not_hdf5_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "results.h5"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_summary(path)
    assert str(caught.value).startswith(f"{path} is not a readable HDF5 file")
    assert "\n" not in str(caught.value)


def test_an_archive_that_was_cut_off_is_named_in_one_line(archive):
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(UserError, match="is not a readable HDF5 file"):
        read_summary(archive)


def test_an_hdf5_file_of_somebody_else_is_no_archive(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = [1]
    with pytest.raises(UserError, match="is not an archive of a run"):
        read_summary(tmp_path / "x.h5")


def test_a_missing_archive_is_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_archive(tmp_path / "results.h5")


def test_an_error_while_writing_leaves_the_old_archive_and_nothing_beside_it(archive):
    before = archive.read_bytes()

    def fill(file):
        file["half"] = [1]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_archive(archive, fill)
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.iterdir()] == ["results.h5"]


def test_a_record_that_cannot_be_written_leaves_the_old_archive(archive, make_record):
    before = archive.read_bytes()
    broken = dataclasses.replace(make_record(), train=[{"step": 1}])
    with pytest.raises(KeyError):
        write_results(archive, broken)
    assert archive.read_bytes() == before


def test_an_archive_can_be_replaced_while_somebody_reads_the_old_one(archive, make_record):
    with open_archive(archive) as reader:
        write_results(archive, make_record(steps=41))
        assert reader.attrs["steps"] == 40
        assert len(reader["train/loss"][()]) == 40
    assert read_summary(archive).steps == 41


def test_two_archives_of_one_record_have_the_same_digest(archive, make_record, tmp_path):
    write_results(tmp_path / "again.h5", make_record())
    with h5py.File(archive) as one, h5py.File(tmp_path / "again.h5") as two:
        assert one.attrs["digest"] == two.attrs["digest"]


def test_a_model_without_moving_average_has_raw_weights_only(make_record, tmp_path):
    record = make_record()
    del record.weights["ema"]
    write_results(tmp_path / "x.h5", record)
    with h5py.File(tmp_path / "x.h5") as file:
        assert list(file["weights"]) == ["raw"]


def test_an_archive_of_a_capped_run_over_its_cap_is_refused_when_it_is_read(make_record, tmp_path):
    write_results(tmp_path / "over.h5", make_record(parameters=100_000))
    with pytest.raises(CapExceeded, match=r"100,000 parameters .* over its caps"):
        read_summary(tmp_path / "over.h5")
