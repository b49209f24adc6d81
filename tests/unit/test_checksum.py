"""SHA-256 of arrays in files: right for each version of NumPy's format, counted once, and ahead of its use."""

import hashlib
import threading

import numpy as np
import pytest

from hpcvision import checksum
from hpcvision.config import AddNISTCNNConfig, DataConfig, RunConfig
from hpcvision.errors import UserError
from hpcvision.launch.job import run_rank
from hpcvision.rundir import open_run
from hpcvision.stopping import StopRequest

NUMBERS = np.arange(1000, dtype=np.int64)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_it_is_that_of_the_numbers_without_the_header(tmp_path, version):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, NUMBERS, version=version)
    assert checksum.sha256_of_array(tmp_path / "a.npy") == hashlib.sha256(NUMBERS.tobytes()).hexdigest()


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    np.save(tmp_path / "a.npy", NUMBERS)
    before = checksum.sha256_of_array(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", NUMBERS[::-1])
    (tmp_path / "b.npy").replace(tmp_path / "a.npy")
    after = checksum.sha256_of_array(tmp_path / "a.npy")
    assert after == hashlib.sha256(NUMBERS[::-1].tobytes()).hexdigest() != before


def test_who_asks_while_a_thread_is_at_it_waits_for_its_answer(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", NUMBERS)
    began, may_go_on, times, real = threading.Event(), threading.Event(), [], hashlib.sha256

    def slow(content):
        times.append(len(content))
        began.set()
        assert may_go_on.wait(60)
        return real(content)

    monkeypatch.setattr(hashlib, "sha256", slow)
    checksum.begin(tmp_path / "a.npy")
    assert began.wait(60)
    threading.Timer(0.1, may_go_on.set).start()
    assert checksum.sha256_of_array(tmp_path / "a.npy") == real(NUMBERS.tobytes()).hexdigest()
    assert times == [NUMBERS.nbytes]


@pytest.mark.parametrize("content", [None, b"", b"short"], ids=["missing", "empty", "short"])
def test_a_file_that_cannot_be_read_is_told_to_who_needs_it(tmp_path, capfd, content):
    path = tmp_path / "a.npy"
    if content is not None:
        path.write_bytes(content)
    checksum.begin(path)
    with pytest.raises((OSError, ValueError, IndexError)):
        checksum.sha256_of_array(path)
    assert capfd.readouterr().err == ""


def test_a_run_begins_with_the_images_of_its_own_data_set(tmp_path, monkeypatch):
    prepared = tmp_path / "data/prepared"
    prepared.mkdir(parents=True)
    for name in ("addnist_regenerated.images", "addnist_regenerated.labels", "cifar100.images"):
        (prepared / f"{name}.npy").touch()
    monkeypatch.setenv("HPCVISION_DATA", str(tmp_path / "data"))
    begun = []
    monkeypatch.setattr(checksum, "begin", begun.append)
    config = RunConfig(name="ahead", model=AddNISTCNNConfig(width=0.05), data=DataConfig(source="addnist"))
    rundir = open_run(config, tmp_path / "runs")
    with pytest.raises(UserError, match="hpcvision data fetch addnist"), StopRequest() as stop:
        run_rank(rundir, stop)
    assert begun == [prepared / "addnist_regenerated.images.npy"]
