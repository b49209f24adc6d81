"""The embedded features order images as a person would, and a score is what its passport says."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from hpcvision import data, distributed
from hpcvision.config import DataConfig, DiffuseConfig, ResidualUNetConfig, RunConfig
from hpcvision.data import Split
from hpcvision.errors import UserError
from hpcvision.metrics.frechet import frechet_distance, moments
from hpcvision.metrics.kernel import kernel_distance_by_class, kernel_distance_of_sets
from hpcvision.results.reader import read_curves, read_summary
from hpcvision.results.writer import write_results
from hpcvision.training import scoring
from hpcvision.training.scoring import SHIPPED, ClassifierExtractor, Described, Reference, describe

SHAPE = {"image_size": 32, "num_classes": 100}
SOURCES = [
    "synthetic",
    pytest.param(
        "cifar100",
        marks=pytest.mark.skipif(
            not data.status("cifar100")["prepared"],
            reason="needs cifar100 in $HPCVISION_DATA: hpcvision data fetch cifar100",
        ),
    ),
]


def configured(source="synthetic"):
    return RunConfig(
        name="tiny", model=ResidualUNetConfig(width=0.3), data=DataConfig(source=source), task=DiffuseConfig()
    )


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    yield distributed.start(distributed.Place(), tmp_path_factory.mktemp("meeting"))
    distributed.stop()


@pytest.fixture(scope="module")
def extractor():
    return ClassifierExtractor(SHIPPED, torch.device("cpu"))


@pytest.fixture(scope="module", params=SOURCES)
def real(request, rank, extractor):
    """1,000 images, 10 of every class, and 1,000 others, as the extractor sees them."""
    images, labels = data.load(DataConfig(source=request.param), "train", **SHAPE)
    of_class = torch.stack([(labels == label).nonzero()[:20, 0] for label in range(100)])
    first, second = of_class[:, :10].flatten(), of_class[:, 10:].flatten()
    return {
        "images": images[first],
        "labels": labels[first],
        "first": describe(extractor, images[first], labels[first], rank),
        "second": describe(extractor, images[second], labels[second], rank),
    }


def distance(one, other):
    return frechet_distance(moments(one.features), moments(other.features))


def test_the_shipped_extractor_is_below_2_mb_and_above_60_percent_with_its_record():
    summary = read_summary(SHIPPED)
    assert SHIPPED.stat().st_size < 2_000_000
    assert summary.track == "auxiliary"
    assert summary.finished
    assert summary.config["name"] == "cifar100_features"
    assert summary.config["data"]["train_on"] == "train"
    train, evaluate = read_curves(SHIPPED)
    last = evaluate[(evaluate["split"] == "validation") & (evaluate["weights"] == "ema")].iloc[-1]
    assert last["step"] == summary.steps
    assert last["accuracy"] >= 0.60
    assert train["seconds"].iloc[-1] > 0


def test_identical_sets_have_no_distance(real):
    assert distance(real["first"], real["first"]) == pytest.approx(0, abs=1e-6)
    recall = scoring.precision_recall(real["first"].features, real["first"].features)
    assert recall == (1.0, 1.0)


def test_the_distance_between_two_halves_is_near_the_floor_of_finite_samples(real):
    # Two samples of one Gaussian with these moments, of these sizes: what a perfect generator would score.
    features = real["second"].features.double()
    whole = moments(features)
    root = whole.root
    stream = torch.Generator().manual_seed(0)
    drawn = [
        whole.mean + torch.randn(len(features), root.shape[1], generator=stream, dtype=torch.float64) @ root.T
        for _ in range(2)
    ]
    floor = frechet_distance(moments(drawn[0]), moments(drawn[1]))
    assert 0.5 * floor < distance(real["first"], real["second"]) < 2 * floor


@pytest.mark.parametrize("spoil", ["blur", "noise", "imbalance", "dropped classes"])
def test_the_distance_grows_with_every_kind_of_damage(real, rank, extractor, spoil):
    images, labels = real["images"], real["labels"]
    distances = [distance(real["first"], real["second"])]
    for strength in (1, 2, 3):
        if spoil == "blur":
            changed, kept = v2.functional.gaussian_blur(images, [5, 5], [0.4 * strength] * 2), labels
        elif spoil == "noise":
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
            changed, kept = (images + 12 * strength * noise).round().clamp(0, 255).to(torch.uint8), labels
        else:
            # Up to 10 images of a class: fewer of the first 50 classes, or none of the first classes at all.
            place = torch.arange(len(labels)) % 10
            rare = (labels < 50) & (place >= 10 - 3 * strength) if spoil == "imbalance" else labels < 25 * strength
            changed, kept = images[~rare], labels[~rare]
        distances.append(distance(describe(extractor, changed, kept, rank), real["second"]))
    assert distances == sorted(distances), distances
    assert distances[-1] > 1.5 * distances[0]


def test_features_do_not_depend_on_the_batch(real, extractor, monkeypatch, rank):
    images, labels = real["images"][:30], real["labels"][:30]
    at_once = describe(extractor, images, labels, rank)
    monkeypatch.setitem(scoring.FEATURE_BATCH, "cpu", 7)
    in_parts = describe(extractor, images, labels, rank)
    torch.testing.assert_close(at_once.features, in_parts.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at_once.logits, in_parts.logits, rtol=1e-4, atol=1e-4)


def test_the_features_are_what_the_last_layer_reads(extractor, real):
    features, logits = extractor(real["images"][:5])
    assert features.shape == (5, 180)
    torch.testing.assert_close(extractor.model.classifier(features), logits)


def test_the_reference_is_balanced_and_cached_by_split_data_and_weights(rank, extractor, tmp_path, monkeypatch):
    monkeypatch.setenv("HPCVISION_DATA", str(tmp_path))
    config = configured()
    small = Split(torch.randint(0, 256, (350, 3, 32, 32), dtype=torch.uint8), torch.arange(350) % 100)
    monkeypatch.setattr(scoring.data, "load", lambda *_arguments, **_shape: small)
    first = scoring.reference_of(config, "validation", extractor, rank)
    assert torch.bincount(first.described.labels).tolist() == [3] * 100
    (cache,) = tmp_path.rglob("*.npz")
    assert extractor.sha256[:16] in cache.name
    assert first.sha256[:16] in cache.name
    monkeypatch.setattr(scoring, "describe", None)  # asked no more
    again = scoring.reference_of(config, "validation", extractor, rank)
    assert torch.equal(again.described.features, first.described.features)


@pytest.mark.parametrize("damage", [b"", b"no archive"])
def test_a_damaged_cache_is_made_again(rank, extractor, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("HPCVISION_DATA", str(tmp_path))
    small = Split(torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8), torch.arange(200) % 100)
    monkeypatch.setattr(scoring.data, "load", lambda *_arguments, **_shape: small)
    first = scoring.reference_of(configured(), "test", extractor, rank)
    (cache,) = tmp_path.rglob("*.npz")
    cache.write_bytes(damage or cache.read_bytes()[:500])
    again = scoring.reference_of(configured(), "test", extractor, rank)
    assert torch.equal(again.described.features, first.described.features)


def test_a_score_is_the_same_for_the_same_images_and_has_every_value(real, extractor):
    few = Described(*(part[:300] for part in (real["first"].features, real["first"].logits, real["first"].labels)))
    reference = Reference("train", "", real["second"], moments(real["second"].features))
    one, other = (scoring.score(extractor, few, reference, seed=3) for _ in range(2))
    assert one == other
    assert set(one) == {"frechet", "kernel_distance", "precision", "recall", "classifier_agreement"}


def test_scores_by_class_count_what_the_classifier_names():
    logits = torch.zeros(6, 3)
    logits[torch.arange(6), torch.tensor([0, 0, 1, 2, 2, 0])] = 1
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    described = Described(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), logits, labels)
    reference = Reference("test", "", described, moments(described.features))
    extractor = type("Three", (), {"classes": 3})()
    found = scoring.score_by_class(extractor, described, reference)
    assert found["class_counts"].tolist() == [2, 2, 2]
    assert found["class_agreement"].tolist() == [1.0, 0.5, 0.5]
    assert scoring.agreement(described) == pytest.approx(4 / 6)


def test_the_kernel_distance_is_its_sum_over_all_pairs_written_plainly():
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, generator=stream), 1 + torch.randn(5, 3, generator=stream)

    def kernel(a, b):
        return (float(a.double() @ b.double()) / 3 + 1) ** 3

    within_x = np.mean([kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance_of_sets(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_the_kernel_distance_is_torch_fidelitys_when_a_subset_is_the_whole_set():
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=stream), 0.3 + torch.randn(60, 5, generator=stream)
    theirs, _ = scoring.kernel_distance(x, y, subsets=1, subset_size=60)
    assert kernel_distance_of_sets(x, y) == pytest.approx(theirs, rel=1e-9)


def test_a_class_with_fewer_than_two_images_has_no_kernel_distance():
    features, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 2])
    assert kernel_distance_by_class(features, labels, features, labels, 3).isnan().tolist() == [False, True, False]


def test_other_data_than_cifar100_need_a_classifier_of_their_own():
    with pytest.raises(UserError, match=r"no features are shipped for data\.source=synthetic.*--extractor"):
        scoring.extractor_of(configured(), None, torch.device("cpu"))
    assert scoring.judge_of(configured(), torch.device("cpu")) == (None, "")


def test_the_archive_of_a_generator_is_no_extractor(tmp_path, make_record):
    path = tmp_path / "results.h5"
    write_results(path, make_record(config=configured().model_dump(mode="json")))
    with pytest.raises(UserError, match="is no classifier"):
        ClassifierExtractor(path, torch.device("cpu"))


def test_another_archive_than_the_shipped_one_is_called_by_its_weights(tmp_path):
    copy = tmp_path / "mine.h5"
    copy.write_bytes(SHIPPED.read_bytes())
    assert ClassifierExtractor(SHIPPED, torch.device("cpu")).name == "cifar100_features"
    other = ClassifierExtractor(copy, torch.device("cpu"))
    assert other.name == f"features_{other.sha256[:8]}"


def test_the_judge_gives_the_classifiers_probability_of_the_requested_class(extractor, real):
    judge, words = scoring.judge_of(configured("cifar100"), torch.device("cpu"))
    images = real["images"][:6].permute(0, 2, 3, 1).numpy()
    _, logits = extractor(real["images"][:6])
    labels = np.array([3, 1, 4, 1, 5, 9])
    wanted = logits.double().softmax(1)[range(6), labels]
    assert judge(images, labels) == pytest.approx(wanted.numpy(), rel=1e-4)
    assert "probability" in words
