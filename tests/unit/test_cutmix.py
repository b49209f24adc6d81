"""CutMix against torchvision's, and the same images whatever the number of processes."""

import pytest
import torch
from torch.nn import functional
from torchvision.transforms import v2

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.data.cutmix import cutmix, rectangles
from hpcvision.distributed import Place, Rank
from hpcvision.training.tasks import Classify

SIZE, CLASSES = 32, 10


def images_of(count):
    """Every pixel of every image has a value of its own."""
    images = torch.arange(count * 3 * SIZE * SIZE, dtype=torch.float32).view(count, 3, SIZE, SIZE)
    return images, torch.arange(count) % CLASSES


def drawn_uniform(count, seed=0):
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
def test_image_and_label_are_those_of_torchvision_at_the_same_draws(seed, monkeypatch):
    images, labels = images_of(2)
    uniform = drawn_uniform(1, seed)
    _, share, y, x = uniform[0].tolist()
    centre = iter([int(x * SIZE), int(y * SIZE)])
    reference = v2.CutMix(num_classes=CLASSES)
    monkeypatch.setattr(reference, "_dist", type("", (), {"sample": lambda _self, _shape: torch.tensor(share)})())
    monkeypatch.setattr(torch, "randint", lambda *_args, **_named: torch.tensor([next(centre)]))
    expected_images, expected_labels = reference(images, labels)

    mixed, shares = cutmix(images, labels, rectangles(uniform, 1.0, SIZE), CLASSES)

    assert torch.equal(mixed[0], expected_images[0])
    torch.testing.assert_close(shares[0], expected_labels[0])


def test_a_label_has_the_share_of_the_pixels_that_its_image_has():
    images, labels = images_of(65)
    mixed, shares = cutmix(images, labels, rectangles(drawn_uniform(64), 1.0, SIZE), CLASSES)
    own = (mixed == images[:-1]).float().mean((1, 2, 3))
    assert torch.equal((mixed == images[:-1]) | (mixed == images[1:]), torch.ones_like(mixed, dtype=torch.bool))
    assert torch.allclose(shares[torch.arange(64), labels[:-1]], own)
    assert torch.allclose(shares.sum(1), torch.ones(64))
    assert own.unique().numel() > 30


def test_the_given_share_of_the_images_is_mixed_and_the_others_stay_as_they_are():
    images, labels = images_of(1001)
    mixed, shares = cutmix(images, labels, rectangles(drawn_uniform(1000), 0.3, SIZE), CLASSES)
    untouched = (mixed == images[:-1]).flatten(1).all(1)
    assert 640 < int(untouched.sum()) < 760
    assert torch.equal(shares[untouched], functional.one_hot(labels[:-1][untouched], CLASSES).float())


def task(rank=0, world_size=1, **settings):
    changes = {"data.source": "synthetic", "train.global_batch_size": 12, "task.cutmix_probability": 0.7}
    config = apply(load_job("cifar100_baby_mobilenet"), changes | settings)
    return Classify(config, Rank(Place(rank=rank, world_size=world_size), torch.device("cpu")), "fp32")


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_a_step_shows_the_same_images_and_labels_on_any_number_of_processes(processes):
    alone = task()
    whole = alone.shown(alone.draw(3))
    parts = [part.shown(part.draw(3)) for part in (task(rank, processes) for rank in range(processes))]
    for expected, *seen in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(seen), expected)
    assert int((whole[2] == 1).sum()) < 12, "some images are mixed"


def test_the_loss_is_the_mixture_of_the_losses_to_both_labels():
    mixing = task(**{"task.label_smoothing": 0.1})
    drawn = mixing.draw(0)
    logits = torch.randn(12, 100, generator=torch.Generator().manual_seed(1))
    loss, sums = mixing.loss(lambda _images: logits, drawn)

    images, labels = mixing.batches.local(drawn)
    top, bottom, left, right = rectangles(drawn["cutmix"], 0.7, SIZE).unbind(1)
    share = (bottom - top) * (right - left) / SIZE**2
    own, others = (
        functional.cross_entropy(logits, of, reduction="none", label_smoothing=0.1) for of in (labels[:-1], labels[1:])
    )
    torch.testing.assert_close(loss, ((1 - share) * own + share * others).mean())
    larger = torch.where(share > 0.5, labels[1:], labels[:-1])
    assert sums[1] == (logits.argmax(1) == larger).sum()
    assert len(images) == 13


def test_without_cutmix_a_step_draws_nothing_else():
    assert set(task(**{"task.cutmix_probability": 0.0}).draw(0)) == {"indices", "augmentation"}


def test_the_picture_of_the_inputs_shows_the_mixed_images():
    mixing, plain = task(), task(**{"task.cutmix_probability": 0.0})
    assert mixing.inputs(0, 12).shape == (12, 3, SIZE, SIZE)
    assert not torch.equal(mixing.inputs(0, 12), plain.inputs(0, 12))
    assert torch.equal(mixing.inputs(0, 5), mixing.inputs(0, 12)[:5])
