"""Schedules, loss, samplers, guidance and interpolation agree with their papers."""

import itertools
import math

import numpy as np
import pytest
import torch

from hpcvision.config import DiffuseConfig
from hpcvision.config.models import ConvNextUNetConfig
from hpcvision.diffusion.guidance import guided
from hpcvision.diffusion.interpolate import linear, slerp
from hpcvision.diffusion.loss import (
    add_noise,
    as_noise,
    denoising_loss,
    drop_labels,
    edm_scale,
    min_snr_weight,
    prediction_target,
)
from hpcvision.diffusion.noise import image_noise, image_step_noise
from hpcvision.diffusion.samplers import SAMPLERS, ddim, ddpm, karras_timesteps, sampling_timesteps
from hpcvision.diffusion.schedule import alpha_bar
from hpcvision.errors import UserError
from hpcvision.models.convnext_unet import ConvNextUNet

LINEAR = alpha_bar(DiffuseConfig())
COSINE = alpha_bar(DiffuseConfig(noise_schedule="cosine"))
SHAPE = (3, 8, 8)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clean_images(count: int) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5)) * 2 - 1


def knowing(clean, alpha_bars):
    """The noise predictor that knows the clean images."""

    def predict(x, timesteps):
        a = alpha_bars[timesteps][:, None, None, None]
        return ((x - a.sqrt() * clean) / (1 - a).sqrt()).float()

    return predict


def gaussian(mean, deviation, alpha_bars):
    """The best possible noise predictor when every pixel of the data is N(mean, deviation^2)."""

    def predict(x, timesteps):
        a = alpha_bars[timesteps][:, None, None, None]
        return ((1 - a).sqrt() * (x - a.sqrt() * mean) / (a * deviation**2 + 1 - a)).float()

    return predict


def sampled(sampler, predict, seeds, *, steps, alpha_bars=LINEAR):
    noise, step_noise = image_noise(seeds, SHAPE), image_step_noise(seeds, SHAPE)
    return SAMPLERS[sampler](predict, noise, alpha_bars, steps=steps, step_noise=step_noise)


# --- schedule


def test_linear_alpha_bar_is_the_product_of_ho_et_al():
    product, expected = 1.0, []
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        expected.append(product)
    np.testing.assert_allclose(LINEAR.numpy(), expected, rtol=1e-12)


def test_cosine_alpha_bar_is_the_squared_cosine_until_the_clip():
    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(t) / f(0) for t in range(1, 1000)]
    np.testing.assert_allclose(COSINE[:-1].numpy(), expected, rtol=1e-9)
    assert COSINE[-1].item() == pytest.approx(expected[-1] * 0.001, rel=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "edm"])
@pytest.mark.parametrize("timesteps", [2, 50, 1000])
def test_alpha_bar_falls_between_1_and_0_in_float64(schedule, timesteps):
    table = alpha_bar(DiffuseConfig(noise_schedule=schedule, timesteps=timesteps))
    assert table.shape == (timesteps,)
    assert table.dtype == torch.float64
    assert table[0] < 1
    assert table[-1] > 0
    assert (table.diff() < 0).all()


# --- loss


def test_noised_images_have_the_mean_and_variance_of_the_forward_process():
    images = torch.full((3, 3, 200, 200), 0.5)
    a = LINEAR[torch.tensor([0, 300, 999])]
    noised = add_noise(images, normal(*images.shape), a).double()
    torch.testing.assert_close(noised.mean(dim=(1, 2, 3)), 0.5 * a.sqrt(), rtol=0, atol=0.01)
    torch.testing.assert_close(noised.var(dim=(1, 2, 3)), 1 - a, rtol=0.02, atol=0)


def test_the_loss_is_every_images_own_mean_squared_error():
    images, noise = clean_images(4), normal(4, *SHAPE)
    timesteps, labels = torch.tensor([0, 10, 500, 999]), torch.tensor([1, 2, -1, 4])

    def model(x, t, y):
        return x * 0.5 + (t + y)[:, None, None, None] * 1e-3

    losses = denoising_loss(model, images, labels=labels, timesteps=timesteps, noise=noise, alpha_bars=LINEAR)
    for i in range(4):
        a = LINEAR[timesteps[i]].item()
        x = a**0.5 * images[i].double().numpy() + (1 - a) ** 0.5 * noise[i].double().numpy()
        predicted = 0.5 * x + (timesteps[i] + labels[i]).item() * 1e-3
        assert losses[i].item() == pytest.approx(((predicted - noise[i].numpy()) ** 2).mean(), rel=1e-5)


PREDICTIONS = ("epsilon", "x0", "v", "edm")


def test_the_velocity_is_the_derivative_of_the_noised_image_by_its_angle():
    # Salimans & Ho 2022: x_phi = cos(phi) x0 + sin(phi) epsilon, v = d x_phi / d phi.
    images, noise, angle = clean_images(1).double(), normal(1, *SHAPE).double(), torch.tensor([0.7]).double()
    at, after = (phi.cos() * images + phi.sin() * noise for phi in (angle - 1e-6, angle + 1e-6))
    velocity = prediction_target(images, noise, angle.cos().square(), "v")
    torch.testing.assert_close(velocity, (after - at) / 2e-6, rtol=0, atol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("alpha_bars", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_the_noise_comes_back_from_each_prediction(alpha_bars, prediction):
    timesteps = torch.tensor([1, 300, 900, 999])
    images, noise, a = clean_images(4).double(), normal(4, *SHAPE).double(), alpha_bars[timesteps]
    target = prediction_target(images, noise, a, prediction)
    predict = as_noise(lambda _x, _t: target, alpha_bars, prediction)
    torch.testing.assert_close(predict(add_noise(images, noise, a), timesteps), noise, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_that_knows_the_clean_image_samples_it_whatever_it_predicts(sampler, prediction):
    clean = clean_images(2)
    knows = knowing(clean, COSINE)

    def predict(x, timesteps):
        a = COSINE[timesteps]
        shown = edm_scale(a, 0.5)[:, None, None, None] if prediction == "edm" else 1.0
        noise = knows(x.double() / shown, timesteps).double()
        return prediction_target(clean.double(), noise, a, prediction)

    images = sampled(sampler, as_noise(predict, COSINE, prediction), [3, 4], steps=20, alpha_bars=COSINE)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_makes_every_prediction_the_same_weighted_error_of_the_clean_image(gamma):
    # One guess of the clean image, said in three ways.
    timesteps = torch.tensor([0, 10, 200, 500, 900])
    images, noise, a = clean_images(5).double(), normal(5, *SHAPE).double(), LINEAR[timesteps]
    noised, guess = add_noise(images, noise, a), images + 0.1 * normal(5, *SHAPE, seed=3).double()
    column = a[:, None, None, None]
    guessed_noise = (noised - column.sqrt() * guess) / (1 - column).sqrt()
    wanted = (a / (1 - a)).clamp(max=gamma) * (guess - images).square().mean((1, 2, 3))
    for prediction in PREDICTIONS:
        said = prediction_target(guess, guessed_noise, a, prediction)
        losses = denoising_loss(
            lambda _x, _t, _y, said=said: said,
            images,
            labels=None,
            timesteps=timesteps,
            noise=noise,
            alpha_bars=LINEAR,
            prediction=prediction,
            min_snr_gamma=gamma,
        )
        torch.testing.assert_close(losses, wanted, rtol=1e-6, atol=0)


def test_min_snr_weights_of_the_noise_are_1_until_the_ratio_exceeds_gamma():
    weights = min_snr_weight(LINEAR, "epsilon", 5.0)
    above = LINEAR / (1 - LINEAR) > 5
    assert (weights[~above] == 1).all()
    assert (weights[above] < 1).all()
    assert above.any()
    assert not above.all()


def test_the_loss_of_a_half_precision_prediction_is_float32():
    noise = normal(2, *SHAPE)
    losses = denoising_loss(
        lambda x, _t, _y: x.bfloat16(),
        clean_images(2),
        labels=None,
        timesteps=torch.tensor([3, 4]),
        noise=noise,
        alpha_bars=LINEAR,
    )
    assert losses.dtype == torch.float32


def test_labels_are_dropped_where_the_uniform_number_is_below_the_probability():
    labels, uniform = torch.tensor([5, 6, 7, 8]), torch.tensor([0.0, 0.09, 0.1, 0.99])
    assert drop_labels(labels, uniform, 0.1).tolist() == [-1, -1, 7, 8]
    assert drop_labels(labels, uniform, 0.0).tolist() == [5, 6, 7, 8]


# --- noise


def test_the_noise_of_an_image_depends_on_its_own_seed_alone():
    together = image_noise([3, 9, 4], SHAPE)
    assert torch.equal(image_noise([9], SHAPE)[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_step_noise_is_fresh_at_every_timestep_and_never_the_first_noise():
    step_noise = image_step_noise([3, 9], SHAPE)
    draws = torch.stack([image_noise([3, 9], SHAPE), step_noise(0), step_noise(1)]).flatten(1)
    assert torch.equal(step_noise(1), step_noise(1))
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.2  # 384 numbers: 4 standard errors


# --- samplers


@pytest.mark.parametrize(
    "steps, expected",
    [(1, [999]), (4, [999, 666, 333, 0]), (3, [999, 499, 0]), (1000, list(range(999, -1, -1)))],
)
def test_sampling_timesteps_are_evenly_spaced_from_the_last_to_the_first(steps, expected):
    assert sampling_timesteps(1000, steps) == expected


def test_karras_timesteps_are_the_nearest_to_the_noise_levels_of_the_paper():
    sigmas = (1 / LINEAR - 1).sqrt()
    found = karras_timesteps(LINEAR.tolist(), 5)
    low, high = sigmas[0].item() ** (1 / 7), 80 ** (1 / 7)
    for timestep, i in zip(found, range(5), strict=True):
        wanted = (high + i / 4 * (low - high)) ** 7
        assert timestep == (sigmas / wanted).log().abs().argmin()


@pytest.mark.parametrize("table", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 18, 1000])
def test_karras_timesteps_fall_without_repetition_to_0(table, steps):
    found = karras_timesteps(table.tolist(), steps)
    assert len(found) <= steps
    assert all(after < before for before, after in itertools.pairwise(found))
    assert found[-1] == 0 or steps == 1


def test_more_sampling_steps_than_timesteps_are_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"sample.steps=51 .* task.timesteps=50"):
        sampling_timesteps(50, 51)


@pytest.mark.parametrize("alpha_bars", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_perfect_predictor_recovers_the_clean_image(sampler, steps, alpha_bars):
    clean = clean_images(2)
    images = sampled(sampler, knowing(clean, alpha_bars), [0, 1], steps=steps, alpha_bars=alpha_bars)
    # One step from the last timestep divides float32 rounding by sqrt(alpha_bar), 5e-5 at the end of the cosine.
    torch.testing.assert_close(images, clean, rtol=0, atol=1e-2 if steps == 1 else 1e-5)


# The probability-flow way of Gaussian data is known: x - sqrt(a) mean shrinks with the deviation of the noised data.
SMOOTH = alpha_bar(DiffuseConfig(noise_schedule="cosine", timesteps=20_000))
MEAN, DEVIATION = 0.1, 0.1


def deviation_of_deterministic(sampler: str, steps: int) -> float:
    """Root mean square of what is sampled less the image at the end of the exact way."""

    def deviation_at(a):
        return (a * DEVIATION**2 + 1 - a).sqrt()

    def predict(x, timesteps):  # float64, so that rounding does not hide the order
        a = SMOOTH[timesteps][:, None, None, None]
        return (1 - a).sqrt() * (x - a.sqrt() * MEAN) / deviation_at(a).square()

    noise = normal(8, *SHAPE).double()
    first = SMOOTH[-1 if sampler == "ddim" else karras_timesteps(SMOOTH.tolist(), 2)[0]]
    last = SMOOTH[0]
    at_last = last.sqrt() * MEAN + (noise - first.sqrt() * MEAN) * deviation_at(last) / deviation_at(first)
    exact = (at_last - (1 - last).sqrt() * predict(at_last, torch.tensor([0]))) / last.sqrt()
    images = SAMPLERS[sampler](predict, noise, SMOOTH, steps=steps, step_noise=image_step_noise(range(8), SHAPE))
    return (images - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("sampler, order", [("ddim", 1), ("heun", 2), ("dpm_solver_2m", 2)])
def test_the_error_of_a_deterministic_sampler_falls_with_its_order(sampler, order):
    errors = [deviation_of_deterministic(sampler, steps) for steps in (81, 161, 321)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders == pytest.approx([order, order], abs=0.25)


@pytest.mark.parametrize("sampler", ["heun", "dpm_solver_2m"])
def test_a_second_order_sampler_is_nearer_than_ddim_at_as_many_evaluations(sampler):
    assert deviation_of_deterministic(sampler, 41) < 0.5 * deviation_of_deterministic("ddim", 41)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 10])
def test_a_sampler_evaluates_the_predictor_at_most_as_often_as_it_may(sampler, steps):
    calls = []

    def predict(x, timesteps):
        calls.append(timesteps)
        return x * 0.5

    sampled(sampler, predict, [0], steps=steps)
    assert len(calls) == (steps - (steps % 2 == 0) if sampler == "heun" else steps)


def test_ddim_with_eta_1_is_ancestral_sampling():
    predict, noise, step_noise = gaussian(0.1, 0.3, LINEAR), image_noise([0, 1], SHAPE), image_step_noise([0, 1], SHAPE)
    ancestral = ddpm(predict, noise, LINEAR, steps=50, step_noise=step_noise)
    torch.testing.assert_close(ddim(predict, noise, LINEAR, steps=50, step_noise=step_noise, eta=1.0), ancestral)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_ddim_samples_gaussian_data_with_their_mean_and_deviation_at_every_eta(eta):
    images = ddim(
        gaussian(0.2, 0.15, LINEAR),
        image_noise(range(16), SHAPE),
        LINEAR,
        steps=1000,
        step_noise=image_step_noise(range(16), SHAPE),
        eta=eta,
    )
    assert images.mean().item() == pytest.approx(0.2, abs=0.01)
    assert images.std().item() == pytest.approx(0.15, rel=0.04)


def test_the_variance_of_ddpm_is_beta_tilde_or_beta():
    # One step from timestep 1 of a table of two, from a point where the predictor finds nothing: what is added remains.
    table, x = torch.tensor([0.9, 0.5], dtype=torch.float64), torch.zeros(4, 3, 64, 64)
    step_noise = image_step_noise(range(4), (3, 64, 64))
    seen = []

    def predict(x, _timesteps):
        seen.append(x.double().var().item())
        return torch.zeros_like(x)

    for variance, wanted in (("small", (1 - 0.9) / (1 - 0.5) * (1 - 0.5 / 0.9)), ("large", 1 - 0.5 / 0.9)):
        ddpm(predict, x, table, steps=2, step_noise=step_noise, variance=variance)
        assert seen[-1] == pytest.approx(wanted, rel=0.03)


def test_ddpm_follows_the_posterior_of_ho_et_al_written_plainly():
    timesteps = sampling_timesteps(1000, 10)
    step_noise = image_step_noise([4], SHAPE)

    def predict(x, t):
        return torch.tanh(x) * (0.5 + t[:, None, None, None] / 2000)

    x = image_noise([4], SHAPE).double().numpy()
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, a_next = LINEAR[t].item(), 1.0 if following is None else LINEAR[following].item()
        beta = 1 - a / a_next
        epsilon = np.tanh(x) * (0.5 + t / 2000)
        clean = np.clip((x - (1 - a) ** 0.5 * epsilon) / a**0.5, -1, 1)
        mean = a_next**0.5 * beta / (1 - a) * clean + (1 - beta) ** 0.5 * (1 - a_next) / (1 - a) * x
        x = mean + ((1 - a_next) / (1 - a) * beta) ** 0.5 * step_noise(t).numpy()

    images = ddpm(predict, image_noise([4], SHAPE), LINEAR, steps=10, step_noise=step_noise)
    np.testing.assert_allclose(images.numpy(), x, rtol=0, atol=1e-4)


def test_ddim_is_deterministic_and_ignores_step_noise():
    predict, noise = gaussian(0.1, 0.2, LINEAR), image_noise([0, 1], SHAPE)
    first = ddim(predict, noise, LINEAR, steps=10)
    assert torch.equal(first, ddim(predict, noise, LINEAR, steps=10, step_noise=image_step_noise([7, 8], SHAPE)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_alone_and_in_a_batch(sampler):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConvNextUNet(ConvNextUNetConfig(width=0.1))

    def sample(seeds):
        labels = torch.tensor(seeds)
        return sampled(sampler, guided(model, labels, 2.0), seeds, steps=4)

    torch.testing.assert_close(sample([11])[0], sample([3, 11, 5])[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha_bars", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_gaussian_data_are_sampled_with_their_mean_and_deviation(sampler, alpha_bars):
    seeds = range(16)
    images = sampled(sampler, gaussian(0.2, 0.15, alpha_bars), seeds, steps=1000, alpha_bars=alpha_bars)
    # 3072 numbers: standard errors are 0.0027 and 1.3 %; DDIM's 1000 steps lose 1.4 % by themselves.
    assert images.mean().item() == pytest.approx(0.2, abs=0.01)
    assert images.std().item() == pytest.approx(0.15, rel=0.04)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_stay_between_minus_1_and_1(sampler):
    images = sampled(sampler, lambda x, _t: -3 * x, [0], steps=5)
    assert images.abs().max() <= 1


# --- guidance


class CountingModel:
    """Noise that depends on the label; remembers how many images it was asked about."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x, timesteps, labels):
        self.sizes.append(len(x))
        return x * 0.3 + (labels + 1)[:, None, None, None] * torch.cos(x) * 0.1 + timesteps[:, None, None, None] / 1000


def test_guidance_scale_1_is_the_conditional_model_at_one_evaluation():
    model, x, t, labels = CountingModel(), normal(2, *SHAPE), torch.tensor([4, 4]), torch.tensor([3, 0])
    assert torch.equal(guided(model, labels, 1.0)(x, t), CountingModel()(x, t, labels))
    assert model.sizes == [2]


def test_guidance_scale_0_is_the_unconditional_model():
    x, t, labels = normal(2, *SHAPE), torch.tensor([4, 4]), torch.tensor([3, 0])
    expected = CountingModel()(x, t, torch.tensor([-1, -1]))
    assert torch.equal(guided(CountingModel(), labels, 0.0)(x, t), expected)


def test_guidance_goes_beyond_the_conditional_model_in_one_doubled_batch():
    model, x, t, labels = CountingModel(), normal(2, *SHAPE), torch.tensor([4, 4]), torch.tensor([3, 0])
    conditional, unconditional = (CountingModel()(x, t, y) for y in (labels, torch.tensor([-1, -1])))
    expected = (1 + 1.5) * conditional - 1.5 * unconditional  # Ho & Salimans 2022, eq. 6, w = 1.5
    torch.testing.assert_close(guided(model, labels, 2.5)(x, t), expected, rtol=0, atol=1e-5)
    assert model.sizes == [4]


# --- interpolation


@pytest.mark.parametrize("path", [linear, slerp])
def test_paths_start_and_end_exactly_at_the_two_noises(path):
    a, b = normal(*SHAPE), normal(*SHAPE, seed=1)
    points = path(a, b, torch.linspace(0, 1, 10))
    assert points.shape == (10, *SHAPE)
    assert points.dtype == torch.float32
    assert torch.equal(points[0], a)
    assert torch.equal(points[-1], b)


def test_slerp_keeps_the_norm_of_gaussian_noise_and_linear_loses_it():
    a, b = normal(3, 32, 32), normal(3, 32, 32, seed=1)
    fractions = torch.linspace(0, 1, 11)
    norms = slerp(a, b, fractions).flatten(1).norm(dim=1) / 3072**0.5
    assert (norms - 1).abs().max() < 0.03
    assert linear(a, b, fractions)[5].norm() / 3072**0.5 == pytest.approx(0.5**0.5, abs=0.03)


def test_slerp_moves_by_equal_angles():
    points = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.linspace(0, 1, 4))
    angles = torch.atan2(points[:, 1], points[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_slerp_between_parallel_noises_is_linear(factor):
    a = normal(*SHAPE)
    fractions = torch.linspace(0, 1, 5)
    assert torch.equal(slerp(a, factor * a, fractions), linear(a, factor * a, fractions))
