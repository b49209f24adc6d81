"""What a diffusion model draws: images of their seeds alone, smooth ways between them, the best by a stated rule."""

import numpy as np
import pytest
import torch

from hpcvision import diffusion, distributed
from hpcvision.config import ConvNextUNetConfig, DataConfig, DiffuseConfig, RunConfig, SampleConfig
from hpcvision.models import build_model
from hpcvision.training import generation
from hpcvision.training.artefacts import Gallery
from hpcvision.training.generation import DrawingStopped, Generator, as_pixels, balanced_labels

SETTINGS = SampleConfig(steps=6, images=12, interpolation_pairs=2, interpolation_points=9)


def configured(**sample):
    return RunConfig(
        name="tiny",
        model=ConvNextUNetConfig(width=0.05),
        data=DataConfig(source="synthetic"),
        task=DiffuseConfig(),
        sample=SampleConfig.model_validate(SETTINGS.model_dump() | sample),
    )


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    yield distributed.start(distributed.Place(), tmp_path_factory.mktemp("meeting"))
    distributed.stop()


@pytest.fixture(scope="module")
def model():
    made = build_model(ConvNextUNetConfig(width=0.05)).eval()
    with torch.no_grad():  # a fresh network hardly looks at its label
        made.label_embedding.weight *= 5
    return made


def gallery(rank, model, **sample):
    return Gallery(Generator(configured(**sample), rank, "fp32"), model, "raw", None)


def grey_levels_between(one, other):
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_an_image_depends_on_its_own_seed_and_label_alone(rank, model, monkeypatch, sampler):
    drawing = gallery(rank, model, sampler=sampler)
    labels = torch.tensor([5, 6, 7, 8, 9])
    together = drawing.samples([10, 11, 12, 13, 14], labels, drawing.settings).images
    monkeypatch.setitem(generation.BATCH, "cpu", 2)
    in_pairs = drawing.samples([10, 11, 12, 13, 14], labels, drawing.settings).images
    alone = drawing.samples([12], labels[2:3], drawing.settings).images
    assert grey_levels_between(together, in_pairs) <= 1
    assert grey_levels_between(together[2:3], alone) <= 1
    assert grey_levels_between(together[2:3], drawing.samples([12], labels[:1], drawing.settings).images) > 1


def test_the_random_samples_show_every_class_as_often_as_any_other():
    assert torch.bincount(balanced_labels(200, 100)).tolist() == [2] * 100
    assert len(balanced_labels(64, 100).unique()) == 64
    assert balanced_labels(4, 100).tolist() == [0, 25, 50, 75]


def test_the_ends_of_an_interpolation_are_the_two_samples(rank, model):
    drawing = gallery(rank, model)
    rows = drawing.interpolations()
    assert set(rows) == {"slerp", "linear"}
    for way in rows.values():
        seeds, labels = way.attributes["seeds"], way.labels
        for pair in range(len(labels)):
            ends = drawing.samples(seeds[pair].tolist(), torch.from_numpy(labels[pair]), drawing.settings).images
            assert grey_levels_between(way.images[pair, [0, -1]], ends) <= 1
    assert (rows["slerp"].labels[:, 0] != rows["slerp"].labels[:, 1]).all()
    assert (rows["linear"].labels[:, 0] == rows["linear"].labels[:, 1]).all()


def test_the_noise_at_the_ends_of_an_interpolation_is_that_of_the_samples_bit_for_bit():
    noise = diffusion.image_noise([0, 1], (3, 32, 32))
    for path in (diffusion.slerp, diffusion.linear):
        points = path(noise[0], noise[1], torch.linspace(0, 1, 10))
        assert torch.equal(points[[0, -1]], noise)


def test_an_interpolation_between_classes_has_no_jump(rank, model):
    drawing = gallery(rank, model, interpolation_pairs=2, interpolation_points=17)
    images = drawing.interpolations()["slerp"].images.astype(float)
    steps = np.sqrt(np.square(np.diff(images, axis=1)).mean((2, 3, 4)))
    assert (steps.max(axis=1) < 2.5 * np.median(steps, axis=1)).all()
    whole = np.sqrt(np.square(images[:, -1] - images[:, 0]).mean((1, 2, 3)))
    assert (steps.max(axis=1) < 0.4 * whole).all()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_an_interpolation_adds_no_noise_whatever_the_sampler_of_the_run(rank, model, sampler):
    drawing = gallery(rank, model, sampler=sampler, eta=0.5 if sampler == "ddim" else 0.0)
    settings = drawing.deterministic_settings
    assert (settings.sampler, settings.eta, settings.steps) == ("ddim", 0.0, 6)
    once, again = (drawing.interpolations()["slerp"].images for _ in range(2))
    assert np.array_equal(once, again)


def test_second_order_samplers_interpolate_as_they_sample(rank, model):
    assert gallery(rank, model, sampler="heun").deterministic_settings.sampler == "heun"


def test_the_denoising_strip_goes_from_the_noise_to_the_sample(rank, model):
    drawing = gallery(rank, model)
    strip = drawing.denoising()
    assert strip.images.shape == (4, 9, 32, 32, 3)
    labels = torch.from_numpy(strip.labels[:, 0])
    noise = as_pixels(diffusion.image_noise(range(4), (3, 32, 32))).numpy()
    assert np.array_equal(strip.images[:, 0], noise)
    samples = drawing.samples(list(range(4)), labels, drawing.settings).images
    assert grey_levels_between(strip.images[:, -1], samples) <= 1
    assert strip.attributes["timesteps"] == sorted(strip.attributes["timesteps"], reverse=True)


def test_the_best_samples_are_those_that_the_judge_likes_best_in_order(rank, model):
    drawing = gallery(rank, model)
    samples = drawing.random()
    best = drawing.best(samples, lambda _images, labels: -np.abs(labels - labels[7]).astype(float), "nearest class")
    assert best.labels[0] == samples.labels[7]
    assert len(best.labels) == 3  # of 12
    assert best.attributes["rule"] == "the 3 of the 12 random ones with the nearest class"
    for image, seed in zip(best.images, best.seeds, strict=True):
        assert np.array_equal(image, samples.images[list(samples.seeds).index(seed)])


def test_without_a_judge_the_best_are_those_with_the_smallest_denoising_error(rank, model):
    drawing = gallery(rank, model)
    samples = drawing.random()
    errors = drawing.images.denoising_error(model, samples.images, torch.from_numpy(samples.labels))
    assert errors.shape == (12,)
    best = drawing.best(samples, None, "")
    assert best.seeds.tolist() == samples.seeds[np.argsort(errors)[:3]].tolist()
    assert best.merit.tolist() == (-np.sort(errors)[:3]).tolist()


def test_real_images_are_noised_to_the_closed_form_and_found_again_by_a_perfect_network(rank):
    real = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = diffusion.image_noise([0, 1], (3, 32, 32))
    images = Generator(configured(), rank, "fp32")
    timesteps = torch.tensor([0, 400, 800])
    noised, found = images.noised_and_found(lambda _x, _t, _y: noise, real, torch.tensor([1, 2]), noise, timesteps)
    assert noised.shape == found.shape == (2, 3, 32, 32, 3)
    clean = real.float() / 127.5 - 1
    for point, timestep in enumerate(timesteps):
        a = images.alpha_bars[timestep]
        wanted = as_pixels(a.sqrt().float() * clean + (1 - a).sqrt().float() * noise).numpy()
        assert grey_levels_between(noised[:, point], wanted) <= 1
        assert grey_levels_between(found[:, point], real.permute(0, 2, 3, 1).numpy()) <= 1


def test_a_wish_to_stop_ends_the_drawing_after_a_batch(rank, model, monkeypatch):
    monkeypatch.setitem(generation.BATCH, "cpu", 2)
    images, told = Generator(configured(), rank, "fp32"), []
    images.stop_code = lambda: 15 if sum(told) >= 3.9 else 0
    with pytest.raises(DrawingStopped) as stopped:
        images.sample(model, range(7), torch.arange(7), SETTINGS, progress=told.append)
    assert stopped.value.code == 15
    assert sum(told) == pytest.approx(4)


def test_progress_adds_up_to_the_images_drawn(rank, model):
    told = []
    images = Generator(configured(), rank, "fp32")
    images.sample(model, range(7), torch.arange(7), SETTINGS, progress=told.append)
    assert sum(told) == pytest.approx(7)
