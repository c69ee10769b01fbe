import math

import pytest
import torch
from gaussians import Gaussian, six_modes

from rcm_core.diffusion.trigflow import diffuse, per_sample, predict_x0
from rcm_core.losses.consistency import normalise_tangent
from rcm_core.losses.distribution_matching import distribution_gradient, distribution_loss
from rcm_core.rng import generator

REAL = six_modes(torch.float64)


def predictions(real, fake, xg, t, rng):
    z = torch.randn(xg.shape, generator=rng, dtype=xg.dtype)
    y = diffuse(xg, z, t)
    return y, predict_x0(y, t, real.velocity(y, t)), predict_x0(y, t, fake.velocity(y, t))


def test_e24_is_zero_when_the_distributions_agree():
    rng = generator(0)
    xg = REAL.sample(64, rng)
    t = torch.linspace(0.01, 1.56, 64, dtype=torch.float64)
    _, D_real, D_fake = predictions(REAL, REAL, xg, t, rng)
    assert torch.equal(distribution_gradient(xg, D_real, D_fake), torch.zeros_like(xg))


@pytest.mark.parametrize(("shift", "std"), [(0.3, 0.4), (0.0, 0.5), (0.0, 0.3)])
def test_e24_is_not_zero_otherwise_and_points_from_fake_to_real(shift, std):
    real = Gaussian(torch.zeros(2, dtype=torch.float64), 0.4)
    fake = Gaussian(torch.full((2,), shift, dtype=torch.float64), std)
    rng = generator(1)
    xg = fake.mixture().sample(4096, rng)
    t = torch.full((4096,), 0.5, dtype=torch.float64)
    _, D_real, D_fake = predictions(real, fake, xg, t, rng)
    gradient = distribution_gradient(xg, D_real, D_fake)
    assert gradient.norm() > 1
    stepped = xg - 0.01 * gradient
    # a small descent step brings mean and deviation of the samples nearer to the real ones
    assert stepped.mean(0).norm() <= xg.mean(0).norm() + 1e-4
    assert abs(stepped.std() - 0.4) < abs(xg.std() - 0.4) or shift


def test_e24_is_the_difference_of_scores_with_a_weight_in_time():
    """D = (y + sin^2 t score) / cos t, so the gradient is the reverse-KL one, scaled for each sample."""
    fake = Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.7).mixture()
    rng = generator(2)
    xg = fake.sample(64, rng)
    t = torch.linspace(0.05, 1.5, 64, dtype=torch.float64)
    y, D_real, D_fake = predictions(REAL, fake, xg, t, rng)
    scale = per_sample(t.sin() ** 2 / t.cos(), y)
    expected = scale * (fake.score(y, t) - REAL.score(y, t))
    w = (xg - D_real).abs().mean(1, keepdim=True)
    # predictions at t = 1.5 divide by cos t = 0.07
    torch.testing.assert_close(
        distribution_gradient(xg, D_real, D_fake) * w, expected, atol=1e-11, rtol=1e-10
    )


def test_weight_has_a_floor_and_is_taken_for_each_sample_alone():
    real = torch.zeros(2, 3, dtype=torch.float64)
    xg = torch.tensor([[0.0, 0.0, 0.0], [3.0, -3.0, 3.0]], dtype=torch.float64)
    gradient = distribution_gradient(xg, real, torch.full_like(real, 1e-5))
    torch.testing.assert_close(gradient[0], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(gradient[1], torch.full((3,), 1e-5 / 3, dtype=torch.float64))


def test_e25_gradient_reaches_the_sample_alone():
    xg = torch.randn(3, 2, generator=generator(3), requires_grad=True)
    gradient = torch.randn(3, 2, generator=generator(4), dtype=torch.float64)
    loss = distribution_loss(xg, gradient)
    loss.sum().backward()
    # the target is rounded to float32
    torch.testing.assert_close(loss.detach().double(), gradient.square().sum(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(xg.grad.double(), 2 * gradient, atol=1e-6, rtol=1e-5)


def test_descent_on_the_exact_gradient_finds_the_real_distribution():
    """The fixed point in one dimension: an affine generator descends to the real mean and deviation."""
    real = Gaussian(torch.tensor([0.5], dtype=torch.float64), 0.3)
    mean = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
    std = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    for step in range(400):
        rng = generator(5, step)
        xg = mean + std * torch.randn(256, 1, generator=rng, dtype=torch.float64)
        fake = Gaussian(mean.detach(), float(std.detach()))
        t = (torch.rand(256, generator=rng, dtype=torch.float64) * 0.48 + 0.01) * math.pi
        _, D_real, D_fake = predictions(real, fake, xg.detach(), t, rng)
        loss = distribution_loss(xg, distribution_gradient(xg, D_real, D_fake)).mean()
        with torch.no_grad():
            for p, grad in zip((mean, std), torch.autograd.grad(loss, (mean, std))):
                p -= 0.02 * grad
    # noise of a constant step size
    assert abs(float(mean.detach()) - 0.5) < 0.05
    assert abs(float(std.detach()) - 0.3) < 0.05


@pytest.mark.parametrize("times", [4, 64])
def test_matching_grows_with_the_root_of_the_number_of_elements_and_consistency_does_not(times):
    """docs/maths.md, section 17: why one lambda is another balance at another size."""
    rng = generator(4)
    x, real, fake, g = (10 * torch.randn(8, 16, generator=rng, dtype=torch.float64) for _ in range(4))

    def sizes(repeat):
        whole = [v.repeat(1, repeat) for v in (x, real, fake, g)]
        matching = distribution_gradient(*whole[:3]).norm(dim=1)
        return matching, normalise_tangent(whole[3], c=0.0).norm(dim=1)

    (matching, consistency), (more, same) = sizes(1), sizes(times)
    torch.testing.assert_close(more, times**0.5 * matching)
    torch.testing.assert_close(same, consistency)
