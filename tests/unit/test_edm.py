"""EDM's noise levels and preconditioning, the analytic variance, guidance in an interval, and encoding."""

import math

import pytest
import torch

from hpcvision import diffusion
from hpcvision.config import DiffuseConfig
from hpcvision.diffusion.loss import add_noise, denoising_loss, edm_scale, prediction_target
from hpcvision.diffusion.samplers import ddim, ddpm, encode, karras_timesteps, noise_power
from hpcvision.diffusion.schedule import edm_sigmas
from hpcvision.seeding import generator

LINEAR = diffusion.alpha_bar(DiffuseConfig())
EDM = diffusion.alpha_bar(DiffuseConfig(noise_schedule="edm"))
SHAPE = (3, 8, 8)
MEAN, DEVIATION = 0.1, 0.2


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def best_for_gaussian(alpha_bars):
    """The best noise predictor when every pixel of the data is N(MEAN, DEVIATION^2)."""

    def predict(x, timesteps):
        a = alpha_bars[timesteps][:, None, None, None]
        return ((1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * DEVIATION**2 + 1 - a)).float()

    return predict


def test_edm_noise_levels_go_from_0_002_to_80_in_equal_factors():
    sigmas = edm_sigmas(1000)
    assert sigmas[[0, -1]].tolist() == pytest.approx([0.002, 80])
    assert sigmas.dtype == torch.float64
    factors = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(factors, torch.full_like(factors, (80 / 0.002) ** (1 / 999)))
    torch.testing.assert_close((1 / EDM - 1).sqrt(), sigmas, rtol=1e-9, atol=0)


def test_the_karras_levels_of_an_edm_table_are_those_of_the_paper_to_half_a_level():
    i = torch.arange(18, dtype=torch.float64)
    paper = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    ours = edm_sigmas(1000)[karras_timesteps(EDM.tolist(), 18)]
    assert ((ours / paper).log().abs() <= math.log(80 / 0.002) / 999 / 2 + 1e-9).all()


def test_edm_training_sees_log_normal_noise_levels():
    config = DiffuseConfig(noise_schedule="edm", log_sigma_mean=-0.8, log_sigma_deviation=0.7)
    drawn = edm_sigmas(1000)[diffusion.draw_timesteps(config, 200_000, generator(0, "noise"))].log()
    assert drawn.mean().item() == pytest.approx(-0.8, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.7, abs=0.01)
    skewness = ((drawn - drawn.mean()) / drawn.std()).pow(3).mean().item()
    assert abs(skewness) < 0.02


def test_the_other_schedules_see_all_timesteps_alike():
    drawn = diffusion.draw_timesteps(DiffuseConfig(timesteps=10), 100_000, generator(0, "noise"))
    assert (torch.bincount(drawn, minlength=10) / 100_000).tolist() == pytest.approx([0.1] * 10, abs=0.005)


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.0])
def test_the_edm_prediction_is_table_1_of_karras_et_al(sigma_data):
    """In the paper's own variables: y clean, y + n noised, D = c_skip (y + n) + c_out F(c_in (y + n))."""
    sigma = torch.tensor([0.01, 0.4, 3.0, 60.0], dtype=torch.float64)
    a = 1 / (1 + sigma**2)
    clean, unit_noise = normal(4, *SHAPE).double(), normal(4, *SHAPE, seed=1).double()
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt()
    c_skip, c_out, c_in, column = (value[:, None, None, None] for value in (c_skip, c_out, c_in, sigma))
    noised = clean + column * unit_noise
    target = (clean - c_skip * noised) / c_out
    torch.testing.assert_close(prediction_target(clean, unit_noise, a, "edm", sigma_data), target)
    shown = []

    def model(x, _timesteps, _labels):
        shown.append(x)
        return torch.zeros_like(x)

    losses = denoising_loss(
        model,
        clean,
        labels=None,
        timesteps=torch.arange(4),
        noise=unit_noise,
        alpha_bars=a,
        prediction="edm",
        sigma_data=sigma_data,
    )
    torch.testing.assert_close(shown[0], c_in * noised)
    # The paper's weight lambda = 1 / c_out^2 on the error of D leaves the plain error of F (eq. 8).
    torch.testing.assert_close(losses, ((c_skip * noised - clean) / c_out).square().mean((1, 2, 3)))


@pytest.mark.parametrize("sigma_data", [0.25, 0.5])
def test_what_an_edm_network_sees_and_says_has_unit_variance_at_every_noise_level(sigma_data):
    images, noise = sigma_data * normal(5, 3, 100, 100), normal(5, 3, 100, 100, seed=1)
    a = EDM[torch.tensor([0, 300, 500, 700, 999])]
    seen = add_noise(images, noise, a) * edm_scale(a, sigma_data)[:, None, None, None]
    said = prediction_target(images, noise, a, "edm", sigma_data)
    for values in (seen, said):
        assert values.std((1, 2, 3)).tolist() == pytest.approx([1] * 5, rel=0.02)


def test_with_a_data_deviation_of_1_the_edm_prediction_is_minus_the_velocity():
    images, noise, a = normal(3, *SHAPE), normal(3, *SHAPE, seed=1), LINEAR[torch.tensor([0, 400, 999])]
    torch.testing.assert_close(
        prediction_target(images, noise, a, "edm", 1.0), -prediction_target(images, noise, a, "v")
    )


def test_the_noise_power_of_gaussian_data_is_that_of_their_best_predictor():
    images = MEAN + DEVIATION * normal(64, 3, 32, 32)
    powers = noise_power(best_for_gaussian(LINEAR), images, normal(64, 3, 32, 32, seed=1), LINEAR, steps=10)
    assert list(powers) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    for timestep, power in powers.items():
        a = LINEAR[timestep].item()
        assert power == pytest.approx((1 - a) / (a * DEVIATION**2 + 1 - a), rel=0.01)


def test_the_analytic_variance_is_what_is_unknown_of_the_next_image_for_gaussian_data():
    # x_next and x are jointly normal, so the variance of x_next given x is known in closed form.
    table, size = torch.tensor([0.9, 0.4], dtype=torch.float64), (3, 64, 64)
    a, a_next = 0.4, 0.9
    total, total_next = (value * DEVIATION**2 + 1 - value for value in (a, a_next))
    wanted = total_next - (a / a_next) * total_next**2 / total
    predict = best_for_gaussian(table)
    seen = []

    def remembering(x, timesteps):
        seen.append(x)
        return predict(x, timesteps)

    def no_noise(_timestep):
        return torch.zeros(4, *size)

    def unit_noise(_timestep):
        return torch.ones(4, *size)

    power = (1 - a) / total  # of the noise that the best predictor finds
    for step_noise in (no_noise, unit_noise):
        ddpm(
            remembering,
            normal(4, *size),
            table,
            steps=2,
            step_noise=step_noise,
            variance="analytic",
            noise_power={1: power},
        )
    added = (seen[3] - seen[1]).square().mean().item()
    assert added == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("steps", [5, 20])
def test_few_analytic_steps_keep_the_deviation_of_gaussian_data_that_the_small_variance_loses(steps):
    predict, noise = best_for_gaussian(LINEAR), diffusion.image_noise(range(64), SHAPE)
    images, unit = MEAN + DEVIATION * normal(256, *SHAPE), normal(256, *SHAPE, seed=1)
    powers = noise_power(predict, images, unit, LINEAR, steps=steps)
    deviations = {
        variance: ddpm(
            predict,
            noise,
            LINEAR,
            steps=steps,
            step_noise=diffusion.image_step_noise(range(64), SHAPE),
            variance=variance,
            noise_power=powers,
        ).std()
        for variance in ("small", "analytic")
    }
    assert abs(deviations["analytic"] - DEVIATION) < 0.5 * abs(deviations["small"] - DEVIATION)


@pytest.mark.parametrize("table", [LINEAR, EDM], ids=["linear", "edm"])
def test_what_is_encoded_in_many_steps_is_decoded_again(table):
    images = (MEAN + DEVIATION * normal(4, *SHAPE)).clamp(-1, 1)
    predict = best_for_gaussian(table)
    errors = []
    for steps in (50, 500):
        noise = encode(predict, images, table, steps=steps)
        errors.append((ddim(predict, noise, table, steps=steps) - images).abs().max().item())
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.03


def test_the_noise_of_encoded_gaussian_images_is_standard_normal():
    images = MEAN + DEVIATION * normal(64, *SHAPE)
    noise = encode(best_for_gaussian(LINEAR), images, LINEAR, steps=1000)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_guidance_costs_a_second_evaluation_within_its_interval_only():
    sigmas = (1 / LINEAR - 1).sqrt()
    interval = (float(sigmas[200]), float(sigmas[600]))
    sizes = {}

    def model(x, timesteps, labels):
        sizes[int(timesteps[0])] = len(x)
        return x * 0.1 * (labels[:, None, None, None] + 2)

    labels = torch.tensor([3, 5])
    predict = diffusion.guided(model, labels, 2.0, diffusion.within(LINEAR, interval))
    x = normal(2, *SHAPE)
    inside, outside = predict(x, torch.full((2,), 400)), predict(x, torch.full((2,), 900))
    for timestep in (199, 200, 600, 601):
        predict(x, torch.full((2,), timestep))
    assert sizes == {400: 4, 900: 2, 199: 2, 200: 4, 600: 4, 601: 2}
    conditional, unconditional = x * 0.1 * (labels[:, None, None, None] + 2), x * 0.1
    torch.testing.assert_close(outside, conditional)
    torch.testing.assert_close(inside, 2 * conditional - unconditional)
