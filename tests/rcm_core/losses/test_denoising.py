import math
from typing import get_args

import pytest
import torch
from gaussians import Gaussian

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.trigflow import conditional_velocity, diffuse, predict_x0
from rcm_core.losses.denoising import ScoreError, fake_score_loss
from rcm_core.rng import generator

RNG = generator(0)
XG, Z, F = (torch.randn(16, 3, generator=RNG, dtype=torch.float64) for _ in range(3))


def test_e26_velocity_error_is_the_weighted_clean_error():
    t = torch.linspace(0.01, math.pi / 2, 16, dtype=torch.float64)
    D = predict_x0(diffuse(XG, Z, t), t, F)
    expected = (XG - D).square().sum(1) / t.sin() ** 2
    torch.testing.assert_close(fake_score_loss(F, XG, Z, t), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("error", get_args(ScoreError))
def test_e55_every_error_is_that_of_its_prediction(error):
    t = torch.linspace(0.01, 1.5, 16, dtype=torch.float64)
    y, flow = diffuse(XG, Z, t), RectifiedFlow()
    column = t[:, None]
    found = {
        "velocity": (F, conditional_velocity(XG, Z, t)),
        "noise": (column.sin() * y + column.cos() * F, Z),
        "data": (predict_x0(y, t, F), XG),
        "flow": (flow.output(y, t, F), Z - XG),
    }
    prediction, truth = found[error]
    expected = (prediction - truth).square().sum(1)
    torch.testing.assert_close(fake_score_loss(F, XG, Z, t, error), expected, atol=1e-12, rtol=1e-10)


def test_e26_is_finite_where_the_quotient_is_not():
    t = torch.zeros(16, dtype=torch.float64)
    assert fake_score_loss(F.float(), XG.float(), Z.float(), t).isfinite().all()


def test_e26_gradient_vanishes_on_average_at_the_true_velocity():
    gaussian = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
    count = 100_000
    rng = generator(1)
    xg = gaussian.mixture().sample(count, rng)
    z = torch.randn(count, 2, generator=rng, dtype=torch.float64)
    t = torch.full((count,), 0.8, dtype=torch.float64)
    y = diffuse(xg, z, t)
    for direction in (torch.ones_like(y), y):
        amount = torch.zeros((), dtype=torch.float64, requires_grad=True)
        fake_score_loss(gaussian.velocity(y, t) + amount * direction, xg, z, t).mean().backward()
        # four standard errors of a mean of terms of size about 2
        assert abs(amount.grad) < 4 * 2 / math.sqrt(count)
