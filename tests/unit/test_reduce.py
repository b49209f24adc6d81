"""Small copies of archives: what they leave out, and that they prove what the whole does."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcvision.config.catalogue import load_job
from hpcvision.errors import UserError
from hpcvision.models import build_model
from hpcvision.results import load, load_model
from hpcvision.results.merge import newest
from hpcvision.results.record import Score
from hpcvision.results.reduce import reduce, rounded
from hpcvision.results.writer import add_scores, write_results
from hpcvision.verify import verify
from hpcvision.verify.scores import Drawn

ROOT = Path(__file__).parents[2]
WHOLE = ROOT / "results/addnist_digit_sum-0.h5"


def content(path):
    """Path -> values of every dataset and attribute but those of the seals."""
    found = {}

    def visit(name, item):
        found.update({f"{name}@{key}": value for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return {name: values for name, values in found.items() if not name.startswith("digests") and name != "@digest"}


def failed(path):
    return [finding for finding in verify(path) if finding.verdict == "FAIL"]


def test_a_copy_has_everything_but_the_other_weights_and_passes_verify(tmp_path):
    reduce(WHOLE, tmp_path / "small.h5")
    whole, small = content(WHOLE), content(tmp_path / "small.h5")
    assert (small.pop("@reduced_from"), small.pop("@significant_bits")) == (load(WHOLE).digest, 24)
    assert small.keys() == {name for name in whole if not name.startswith("weights/raw")}
    assert all(np.array_equal(small[name], whole[name]) for name in small)
    assert failed(tmp_path / "small.h5") == []


def test_rounded_weights_are_near_in_value_and_in_what_the_model_says(tmp_path):
    reduce(WHOLE, tmp_path / "small.h5", significant_bits=16)
    whole, small = load(WHOLE).weights["ema"], load(tmp_path / "small.h5").weights["ema"]
    for name, values in whole.items():
        assert small[name].dtype == values.dtype
        assert (np.abs(small[name] - values) <= np.abs(values) * 2.0**-16).all(), name
    images = torch.rand(16, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (load_model(path)(images) for path in (WHOLE, tmp_path / "small.h5"))
    assert torch.allclose(one, other, atol=0.02)
    assert failed(tmp_path / "small.h5") == []


@pytest.mark.parametrize(
    ("value", "bits", "expected"),
    [(1.0, 8, 1.0), (1 + 2**-8, 8, 1.0), (1 + 2**-7, 8, 1 + 2**-7), (-3.14159, 8, -3.140625), (0.0, 8, 0.0)],
)
def test_a_number_is_rounded_to_the_nearest_with_so_many_bits(value, bits, expected):
    assert rounded(np.array([value], "f4"), bits).tolist() == [expected]


def test_bf16_is_rounding_to_eight_bits():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(rounded(values.numpy(), 8), values.bfloat16().float().numpy())


def test_pictures_stay_behind_and_all_scores_are_kept(make_record, tmp_path):
    write_results(tmp_path / "whole.h5", make_record())
    passport = {"extractor": "x", "weights": "raw", "reference": "test"}
    add_scores(tmp_path / "whole.h5", {"x_test_raw": Score({"frechet": [1.0]}, passport)}, reads_test=True)
    reduce(tmp_path / "whole.h5", tmp_path / "small.h5")
    with h5py.File(tmp_path / "small.h5") as file:
        assert set(file["scores"]) == {"test", "x_test_raw"}
        assert {"samples", "interpolations", "strips"}.isdisjoint(file)
        assert list(file["weights"]) == [load(tmp_path / "whole.h5").headline]


def test_scores_of_weights_that_were_left_out_are_not_computed_anew_and_said_so(make_record, tmp_path):
    settings = load_job("cifar100_edm").model_dump(mode="json")
    write_results(tmp_path / "whole.h5", make_record(config=settings, confusion=None, scores={}))
    passport = {"extractor": "cifar100_features", "weights": "raw", "reference": "test"}
    add_scores(tmp_path / "whole.h5", {"x": Score({"frechet": [1.0]}, passport)}, reads_test=True)
    reduce(tmp_path / "whole.h5", tmp_path / "small.h5")
    finding = Drawn("x")(load(tmp_path / "small.h5"))
    assert (finding.verdict, finding.words) == ("SKIP", "the raw weights were left out of this reduced copy")


def test_a_generator_at_its_cap_fits_below_3_megabytes(make_record, tmp_path):
    job = load_job("cifar100_edm")
    config = job.model_dump(mode="json")
    weights = {name: tensor.numpy() for name, tensor in build_model(job.model).state_dict().items()}
    write_results(
        tmp_path / "whole.h5",
        make_record(config=config, weights={"raw": weights, "ema": weights}, confusion=None, scores={}),
    )
    assert reduce(tmp_path / "whole.h5", tmp_path / "small.h5", significant_bits=16) < 3_000_000


def test_of_a_run_and_its_copy_a_merge_keeps_the_run(make_record, tmp_path):
    write_results(tmp_path / "whole.h5", make_record())
    reduce(tmp_path / "whole.h5", tmp_path / "small.h5")
    add_scores(tmp_path / "small.h5", {"x": Score({"frechet": [1.0]}, {"extractor": "x"})}, reads_test=False)
    whole, small = load(tmp_path / "whole.h5"), load(tmp_path / "small.h5")
    assert newest([small, whole]) == newest([whole, small]) == [whole]


def test_the_command_says_the_size_and_show_says_what_is_left(call, tmp_path):
    assert call("results", "reduce", WHOLE, "-o", tmp_path / "a.h5", "--significant-bits", 12) == (
        0,
        f"{tmp_path / 'a.h5'}: {(tmp_path / 'a.h5').stat().st_size / 1e6:.2f} MB\n",
        "",
    )
    for command in ("show", "export --json --table summary"):
        code, out, _ = call("results", *command.split(), tmp_path / "a.h5")
        assert code == 0
        assert "of 12 significant bits" in " ".join(out.split())
    assert call("report", tmp_path / "a.h5", "-o", tmp_path / "page.html")[0] == 0
    assert "of 12 significant bits" in (tmp_path / "page.html").read_text()


def test_what_cannot_be_reduced_is_one_line_and_writes_nothing(make_record, tmp_path):
    unfinished, whole, changed, small = (
        tmp_path / f"{name}.h5" for name in ("unfinished", "whole", "changed", "small")
    )
    write_results(unfinished, make_record(finished=False))
    write_results(whole, make_record())
    shutil.copy(whole, changed)
    with h5py.File(changed, "r+") as file:
        file["train/loss"][3] += 0.5
    with pytest.raises(UserError, match="has not finished"):
        reduce(unfinished, small)
    with pytest.raises(UserError, match=r"is not as it was written \(train/loss\)"):
        reduce(changed, small)
    before = unfinished.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        reduce(whole, unfinished)
    assert unfinished.read_bytes() == before
    assert not small.exists()
    reduce(whole, small)
    with pytest.raises(UserError, match="is a reduced copy already"):
        reduce(small, tmp_path / "smaller.h5")


def test_a_copy_takes_no_new_scores(call, make_record, tmp_path):
    settings = load_job("cifar100_edm").model_dump(mode="json")
    write_results(tmp_path / "whole.h5", make_record(config=settings, confusion=None, scores={}))
    reduce(tmp_path / "whole.h5", tmp_path / "small.h5")
    code, _, complaint = call("evaluate", tmp_path / "small.h5")
    assert (code, complaint.count("\n")) == (2, 1)
    assert "give the whole archive" in complaint
