"""The scores on features agree with torch-fidelity's own run over the images and with what is known of them."""

import hashlib
import io
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from hpcvision.errors import UserError
from hpcvision.metrics import fidelity
from hpcvision.metrics.fidelity import InceptionExtractor, inception_score, kernel_distance, precision_recall
from hpcvision.metrics.frechet import frechet_distance, moments

SUBSETS, SUBSET_SIZE, SPLITS, SEED = 10, 16, 3, 11


class Unread(FeatureExtractorInceptionV3):
    """The network with the weights that it was made with."""

    def load_state_dict(self, *_, **__):
        pass


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On cores that others use too, two threads wait for each other: 3 images a second instead of 7."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights whose features and logits differ clearly from image to image."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Unread("random", ["2048"], feature_extractor_weights_path=empty)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        torch.nn.init.normal_(network.fc.weight, std=2.0)
        torch.nn.init.normal_(network.fc.bias)  # which the score leaves out
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights):
    return InceptionExtractor(weights, "cpu")


def pictures(count, *, seed, contrast, blue):
    """(count, 3, 32, 32) uint8 with soft blots."""
    stream = torch.Generator().manual_seed(seed)
    blots = torch.nn.functional.interpolate(torch.randn(count, 3, 5, 5, generator=stream), size=32, mode="bicubic")
    tint = torch.tensor([0, 0, blue]).reshape(3, 1, 1)
    return (128 + contrast * blots + tint).clamp(0, 255).to(torch.uint8)


GENERATED = pictures(24, seed=1, contrast=45, blue=0)
REFERENCE = pictures(32, seed=2, contrast=60, blue=30)


def extracted(extractor, images, batch_size):
    parts = [extractor(batch) for batch in images.split(batch_size)]
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits


@pytest.fixture(scope="module")
def generated(extractor):
    """Features and logits."""
    return extracted(extractor, GENERATED, 8)


@pytest.fixture(scope="module")
def reference(extractor):
    """Features and logits."""
    return extracted(extractor, REFERENCE, 32)


@pytest.fixture(scope="module")
def theirs(weights):
    """The scores of torch-fidelity's own run over the same images, by its own names."""
    return torch_fidelity.calculate_metrics(
        input1=torch.utils.data.Subset(GENERATED, range(len(GENERATED))),
        input2=torch.utils.data.Subset(REFERENCE, range(len(REFERENCE))),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=SPLITS,
        kid_subsets=SUBSETS,
        kid_subset_size=SUBSET_SIZE,
        rng_seed=SEED,
        batch_size=16,
        save_cpu_ram=True,  # no worker processes
        cuda=False,
        cache=False,
        verbose=False,
    )


def gaussian(count, size=16, *, seed, mean=0.0):
    stream = torch.Generator().manual_seed(seed)
    return mean + torch.randn(count, size, generator=stream)


@pytest.mark.long
def test_the_frechet_distance_of_its_features_is_that_of_torch_fidelity(generated, reference, theirs):
    ours, other = moments(generated[0]), moments(reference[0])
    distance = frechet_distance(ours, other)
    assert 0.05 * other.covariance.trace() < distance
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)


@pytest.mark.long
def test_the_kernel_distance_of_its_features_is_that_of_torch_fidelity(generated, reference, theirs):
    mean, deviation = kernel_distance(generated[0], reference[0], subsets=SUBSETS, subset_size=SUBSET_SIZE, seed=SEED)
    assert mean > 3 * deviation > 0
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


@pytest.mark.long
def test_precision_and_recall_of_its_features_are_those_of_torch_fidelity(generated, reference, theirs):
    precision, recall = precision_recall(generated[0], reference[0])
    assert 0 < recall < precision < 1
    assert (precision, recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


@pytest.mark.long
def test_the_inception_score_of_its_logits_is_that_of_torch_fidelity(generated, theirs):
    mean, deviation = inception_score(generated[1], splits=SPLITS, seed=SEED)
    assert mean > 1.1
    assert mean - 1 == pytest.approx(theirs["inception_score_mean"] - 1, rel=1e-3)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-3)


def test_features_and_logits_are_float32_of_the_sizes_of_inception(generated):
    features, logits = generated
    assert (features.shape, logits.shape) == ((24, 2048), (24, 1008))
    assert features.dtype == logits.dtype == torch.float32
    assert not features.requires_grad
    assert features.min() >= 0


def test_features_of_an_image_do_not_depend_on_its_batch_or_on_what_was_computed_before(extractor, generated):
    features, logits = generated
    for chosen in ([9], [23, 0, 9]):
        again, again_logits = extractor(GENERATED[chosen])
        torch.testing.assert_close(again, features[chosen], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again_logits, logits[chosen], rtol=1e-4, atol=1e-3)


def test_features_do_not_depend_on_the_arithmetic_that_the_process_trains_with(extractor, generated):
    seen = []

    def switches():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def switch(matrix_products, convolutions):
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matrix_products, convolutions

    before = switches()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: seen.append(switches()))
    try:
        for trained_with in ((True, False), (False, True)):
            switch(*trained_with)
            with torch.autocast("cpu", torch.bfloat16):
                features, _ = extractor(GENERATED[:1])
            assert switches() == trained_with
    finally:
        hook.remove()
        switch(*before)
    assert set(seen) == {(False, False)}
    torch.testing.assert_close(features, generated[0][:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte()]
)
def test_what_is_no_batch_of_colour_images_is_refused_in_one_line(extractor, images):
    with pytest.raises(UserError, match=r"Inception takes \(B, 3, H, W\) torch.uint8.*\Z"):
        extractor(images)


def test_the_address_of_the_weights_is_that_of_torch_fidelity_and_their_hash_the_one_in_their_name():
    assert URL_INCEPTION_V3 == fidelity.INCEPTION_URL
    assert fidelity.INCEPTION_FILE.endswith(f"-{fidelity.INCEPTION_SHA256[:8]}.pth")
    assert len(fidelity.INCEPTION_SHA256) == 64


def test_random_weights_are_never_called_fid_whatever_the_name_of_their_file(weights, tmp_path):
    renamed = tmp_path / fidelity.INCEPTION_FILE
    renamed.symlink_to(weights)
    found = InceptionExtractor(renamed, "cpu")
    short = found.sha256[:8]
    assert not found.is_official
    assert (found.name, found.frechet_name) == (f"inception_{short}", f"frechet_inception_{short}")


def test_the_hash_of_the_file_alone_makes_it_the_official_one(weights, extractor, monkeypatch):
    told = subprocess.run(["sha256sum", weights], capture_output=True, text=True, check=True).stdout.split()[0]
    assert extractor.sha256 == told
    monkeypatch.setattr(fidelity, "INCEPTION_SHA256", told)
    found = InceptionExtractor(weights, "cpu")
    assert found.is_official
    assert (found.name, found.frechet_name) == ("inception_v3", "fid")


def test_a_missing_file_says_in_one_line_how_to_get_it(tmp_path):
    with pytest.raises(
        UserError, match=r"no Inception weights at .*absent.pth; .*data fetch inception.*--extractor FILE"
    ):
        InceptionExtractor(tmp_path / "absent.pth", "cpu")


def test_a_file_that_does_not_hold_these_weights_is_refused_in_one_line(weights, tmp_path):
    def refusal(path):
        with pytest.raises(UserError) as caught:
            InceptionExtractor(path, "cpu")
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        assert "--extractor FILE" in str(caught.value)
        return str(caught.value)

    def saved(content):
        torch.save(content, tmp_path / "saved.pth")
        return tmp_path / "saved.pth"

    assert "cannot be read" in refusal(tmp_path)
    broken = tmp_path / "broken.pth"
    for content in (b"", b"<html>404</html>", bytes(range(256)), weights.read_bytes()[:-1000]):
        broken.write_bytes(content)
        assert "is no file of weights" in refusal(broken)
    assert "is no file of weights" in refusal(saved(torch.nn.Linear(2, 2)))  # an object, which could run code
    state = torch.load(weights, weights_only=True)
    for content in ([1, 2], {}, torch.ones(3), {1: 2}, state | {"fc.weight": torch.zeros(1000, 2048)}):
        assert "does not hold the weights" in refusal(saved(content))


def test_the_kernel_distance_is_the_unbiased_one_with_the_cubic_kernel():
    a, b = gaussian(40, seed=1).double(), gaussian(40, seed=2, mean=0.4).double()

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        return (kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1))

    wanted = within(a) + within(b) - 2 * kernel(a, b).mean()
    mean, deviation = kernel_distance(a, b, subsets=3, subset_size=40)  # each subset is all of them
    assert mean == pytest.approx(wanted.item(), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_the_kernel_distance_of_two_halves_is_zero_within_its_deviation_and_grows_with_a_shift():
    halves = gaussian(2000, seed=3).split(1000)
    found = [
        kernel_distance(halves[0], halves[1] + shift, subsets=20, subset_size=500) for shift in (0.0, 0.1, 0.2, 0.4)
    ]
    means = [mean for mean, _ in found]
    assert abs(means[0]) < 2 * found[0][1]
    assert means == sorted(means)
    assert means[1] > 2 * found[1][1]


def test_features_of_float32_are_scored_in_float64():
    a, b = gaussian(200, 8, seed=4, mean=1000.0), gaussian(200, 8, seed=5, mean=1000.0)
    for score in (precision_recall, lambda a, b: kernel_distance(a, b, subsets=5, subset_size=100)):
        assert score(a, b) == score(a.double(), b.double())


def test_the_same_seed_gives_the_same_subsets_and_splits_and_another_gives_others():
    a, b = gaussian(60, seed=6), gaussian(60, seed=7)
    for score in (
        lambda seed: kernel_distance(a, b, subset_size=20, seed=seed),
        lambda seed: inception_score(a, seed=seed),
    ):
        assert score(1) == score(1)
        assert score(1) != score(2)


def brute_force(features, reference, neighbours):
    """From the definition: one pair at a time."""

    def share(inside, of):
        radii = [sorted((x - y).norm() for y in of)[neighbours] for x in of]  # the nearest is x itself
        return np.mean([any((x - y).norm() <= r for y, r in zip(of, radii, strict=True)) for x in inside])

    return share(features, reference), share(reference, features)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_follow_their_definition(neighbours):
    a, b = gaussian(30, 4, seed=8).double(), gaussian(45, 4, seed=9, mean=0.8).double()
    found = precision_recall(a, b, neighbours=neighbours)
    assert 0 < min(found) <= max(found) < 1
    assert found == pytest.approx(brute_force(a, b, neighbours), abs=1e-6)


def test_precision_and_recall_are_one_for_identical_sets_in_any_order():
    a = gaussian(1500, seed=10)  # more than are compared at a time
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a.flip(0), a) == (1, 1)


def test_recall_falls_when_a_mode_is_dropped_and_precision_stays():
    modes = [gaussian(200, seed=seed, mean=mean) for seed, mean in ((11, -5.0), (12, 5.0))]
    again = [gaussian(200, seed=seed, mean=mean) for seed, mean in ((13, -5.0), (14, 5.0))]
    both = precision_recall(torch.cat(again), torch.cat(modes))
    one = precision_recall(again[0], torch.cat(modes))
    assert both[1] > 0.8
    assert one[1] < 0.5
    assert one[0] == pytest.approx(both[0], abs=0.1)


def test_the_inception_score_is_the_number_of_classes_when_all_are_certain_and_even_and_one_when_all_are_alike():
    certain = 100 * torch.eye(5).repeat(200, 1)
    assert inception_score(certain, splits=1, seed=0) == pytest.approx((5, 0), rel=1e-6)
    alike = torch.randn(5, generator=torch.Generator().manual_seed(15)).repeat(100, 1)
    assert inception_score(alike, seed=0) == pytest.approx((1, 0), abs=1e-6)


def test_no_global_generator_is_touched(weights):
    a, b = gaussian(40, seed=16), gaussian(40, seed=17)
    np.random.seed(3)
    torch.manual_seed(3)
    before, numpys = torch.get_rng_state(), np.random.get_state()
    InceptionExtractor(weights, "cpu")(GENERATED[:1])
    kernel_distance(a, b, subset_size=20)
    precision_recall(a, b)
    inception_score(a, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), numpys, strict=True))


def test_nothing_is_printed(weights, capfd):
    a, b = gaussian(40, seed=18), gaussian(40, seed=18)
    InceptionExtractor(weights, "cpu")
    kernel_distance(a, b, subset_size=20)
    precision_recall(a, b)
    inception_score(a, seed=1)
    assert capfd.readouterr() == ("", "")


A, B = gaussian(20, seed=19), gaussian(30, seed=20)


@pytest.mark.parametrize(
    "score, words",
    [
        (lambda: kernel_distance(A, B), "20 images and 30 of the reference have no subsets of 1000.*at most 20"),
        (lambda: kernel_distance(A, B, subset_size=1), "at least 1 of at least 2"),
        (lambda: kernel_distance(A, B, subsets=0, subset_size=5), r"0 subset\(s\)"),
        (lambda: kernel_distance(A, B[:, :3], subset_size=5), "16 features and the reference 3"),
        (lambda: kernel_distance(A, B, subset_size=5, seed=2**32), "the seed is 4294967296; give 0 to 4294967295"),
        (lambda: precision_recall(A, B, neighbours=20), "20 neighbours of 20 and 30 images"),
        (lambda: precision_recall(A, B, neighbours=0), "0 neighbours"),
        (lambda: precision_recall(A, B / 0), "not finite"),
        (lambda: inception_score(A, splits=21, seed=0), r"20 image\(s\) cannot be split in 21"),
        (lambda: inception_score(A / 0, seed=0), "not finite"),
        (lambda: inception_score(A, seed=-1), "the seed is -1"),
    ],
)
def test_what_a_score_cannot_be_computed_of_is_refused_in_one_line(score, words):
    with pytest.raises(UserError, match=f"{words}.*\\Z"):
        score()


def test_torch_fidelity_is_imported_only_when_it_is_used():
    code = "import sys, hpcvision.metrics.fidelity; sys.exit('torch_fidelity' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A web server on this machine that has the weights under the official name; gives its folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(fidelity, "INCEPTION_URL", f"http://127.0.0.1:{server.server_port}/weights.pth")
        yield folder
        server.shutdown()


def test_the_weights_are_fetched_once_and_checked(served, tmp_path, monkeypatch):
    content = b"weights" * 1000
    monkeypatch.setattr(fidelity, "INCEPTION_SHA256", hashlib.sha256(content).hexdigest())
    (served / "weights.pth").write_bytes(content)
    target = fidelity.fetch_inception(tmp_path / "staged")
    assert target.read_bytes() == content
    assert target.name == fidelity.INCEPTION_FILE
    (served / "weights.pth").unlink()
    assert fidelity.fetch_inception(tmp_path / "staged") == target


def test_weights_that_were_damaged_since_are_fetched_anew(served, tmp_path, monkeypatch):
    content = b"weights" * 1000
    monkeypatch.setattr(fidelity, "INCEPTION_SHA256", hashlib.sha256(content).hexdigest())
    (served / "weights.pth").write_bytes(content)
    (tmp_path / fidelity.INCEPTION_FILE).write_bytes(content[:-1])
    assert fidelity.fetch_inception(tmp_path).read_bytes() == content


def test_weights_brought_by_other_means_are_staged_when_they_are_the_official_ones(tmp_path, monkeypatch):
    brought = tmp_path / "brought.pth"
    brought.write_bytes(b"weights" * 1000)
    with pytest.raises(UserError, match=r"brought.pth is not weights-inception.*give it to `hpcvision evaluate`"):
        fidelity.fetch_inception(tmp_path / "staged", brought)
    assert not (tmp_path / "staged").exists()
    monkeypatch.setattr(fidelity, "INCEPTION_SHA256", hashlib.sha256(brought.read_bytes()).hexdigest())
    target = fidelity.fetch_inception(tmp_path / "staged", brought)
    assert target.read_bytes() == brought.read_bytes()


@pytest.mark.parametrize("content", [None, b"another file"])
def test_a_fetch_that_fails_is_one_line_and_leaves_no_file(served, tmp_path, content):
    if content:
        (served / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot fetch http.*inception --weights FILE") as caught:
        fidelity.fetch_inception(tmp_path / "staged")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "staged").iterdir()) == []
