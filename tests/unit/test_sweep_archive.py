"""sweep.h5 of hundreds of trials."""

import shutil
import time

import h5py
import numpy as np
import pytest

from hpcvision.results.digests import broken_seals
from hpcvision.results.writer import write_results

COUNT = 500
PARAMETERS = 97_584


@pytest.mark.long
def test_500_classifiers_at_the_cap_make_an_archive_within_a_minute_that_is_smaller_than_a_gigabyte(
    make_record, make_sweep, tmp_path
):
    random = np.random.default_rng(0)
    weights = {kind: {"weight": random.standard_normal(PARAMETERS, dtype=np.float32)} for kind in ("raw", "ema")}
    points = {"learning_rate": 0.1, "seconds": 1.0, "images_per_second": 900.0, "loss": 1.0, "accuracy": 0.5}
    train = [{"step": step} | points for step in range(50, 10_001, 50)]
    write_results(tmp_path / "first.h5", make_record(weights=weights, train=train, parameters=PARAMETERS))
    archives = [tmp_path / f"{number}.h5" for number in range(COUNT)]
    for archive in archives:
        shutil.copy(tmp_path / "first.h5", archive)
        with h5py.File(archive, "r+") as file:
            file["weights/raw/weight"][...] = random.standard_normal(PARAMETERS, dtype=np.float32)
    pairs = [({"optim.learning_rate": 0.001 * number}, number / COUNT) for number in range(COUNT)]
    began = time.monotonic()
    make_sweep(tmp_path / "sweep.h5", pairs, archives=archives)
    assert time.monotonic() - began < 60
    assert (tmp_path / "sweep.h5").stat().st_size < 10**9
    with h5py.File(tmp_path / "sweep.h5") as file:
        assert len(file["runs"]) == len(file["trials/label"]) == COUNT
        assert broken_seals(file) == []
        for number in (0, 250, 499):
            with h5py.File(tmp_path / f"{number}.h5") as own:
                kept = file[f"runs/{number:012x}/weights/raw/weight"][()]
                assert (kept == own["weights/raw/weight"][()]).all()
