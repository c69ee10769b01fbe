import math

import pytest
import torch
from gaussians import Gaussian, Perceptron, six_modes

from rcm_core.diffusion.trigflow import per_sample, predict_x0
from rcm_core.jvp import consistency_jvp
from rcm_core.losses.consistency import (
    consistency_loss,
    consistency_tangent,
    normalise_rms,
    normalise_tangent,
    tangent_norm,
)

TEACHER = six_modes(torch.float64)
STUDENT = Perceptron(seed=3).double()
RNG = torch.Generator().manual_seed(0)
X = torch.randn(32, 2, generator=RNG, dtype=torch.float64)
T = torch.linspace(0.02, math.pi / 2, 32, dtype=torch.float64)
COS, SIN = per_sample(T.cos(), X), per_sample(T.sin(), X)


@pytest.fixture(scope="module")
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the student's and the teacher's velocity and J."""
    F_teacher = TEACHER.velocity(X, T)
    F, J = consistency_jvp(STUDENT, X, T, {}, F_teacher, "exact")
    return F, F_teacher, J


def along_the_ode(function, h: float = 1e-5) -> torch.Tensor:
    """Return d/dt of ``function(x, t)`` along the teacher's ODE by central differences of the linearised path."""
    a = TEACHER.velocity(X, T)
    with torch.no_grad():
        return (function(X + h * a, T + h) - function(X - h * a, T - h)) / (2 * h)


def velocity_derivative() -> torch.Tensor:
    return along_the_ode(STUDENT)


def test_e16_j_is_the_scaled_derivative_of_the_velocity(parts):
    # central differences: h^2 truncation 1e-10, rounding 1e-16 / h = 1e-11, times second derivatives of a few
    torch.testing.assert_close(parts[2], COS * SIN * velocity_derivative(), atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("form", ["rcm", "scm"])
def test_e15_e17_at_the_end_of_warmup_both_forms_are_cos_t_df_dt(parts, form):
    F, F_teacher, J = parts
    derivative = along_the_ode(lambda x, t: predict_x0(x, t, STUDENT(x, t)))
    g = consistency_tangent(F, F_teacher, J, X, T, 1.0, form)
    torch.testing.assert_close(g, COS * derivative, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_e18_scm_warms_up_the_whole_unstable_bracket(parts, r):
    F, F_teacher, J = parts
    bracket = COS * SIN * (X + velocity_derivative())
    expected = -COS * COS * (F - F_teacher) - r * bracket
    g = consistency_tangent(F, F_teacher, J, X, T, r, "scm")
    torch.testing.assert_close(g, expected, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_e19_rcm_warms_up_the_state_and_rotates_the_velocity_error(parts, r):
    F, F_teacher, J = parts
    # sin t_r = r sin t defines an angle t_r; its cosine weighs the error
    t_r = (r * SIN).asin()
    expected = -COS * t_r.cos() * (F - F_teacher) - COS * t_r.sin() * X - COS * SIN * velocity_derivative()
    g = consistency_tangent(F, F_teacher, J, X, T, r, "rcm")
    # cos(asin(s)) near s = 1 loses half the digits of the oracle
    torch.testing.assert_close(g, expected, atol=3e-8, rtol=1e-7)


def test_the_two_warmups_agree_at_the_end_alone(parts):
    F, F_teacher, J = parts

    def gap(r: float) -> float:
        first, second = (consistency_tangent(F, F_teacher, J, X, T, r, form) for form in ("rcm", "scm"))
        return float((first - second).abs().max())

    # cos t sqrt(1 - sin^2 t) against cos^2 t: rounding
    assert gap(1.0) < 1e-7
    assert gap(0.5) > 0.01
    assert gap(0.0) > 0.01


def test_scm_at_the_start_of_warmup_is_velocity_matching(parts):
    F, F_teacher, J = parts
    g = consistency_tangent(F, F_teacher, J, X, T, 0.0, "scm")
    torch.testing.assert_close(g, COS**2 * (F_teacher - F), atol=1e-15, rtol=0)


@pytest.mark.parametrize("form", ["rcm", "scm"])
def test_the_tangent_vanishes_at_the_exact_consistency_function(form):
    gaussian = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
    F_teacher = gaussian.velocity(X, T)
    F, J = consistency_jvp(gaussian.consistency_velocity, X, T, {}, F_teacher, "exact")
    g = consistency_tangent(F, F_teacher, J, X, T, 1.0, form)
    # the exact student is a quotient by sin t >= 0.02
    torch.testing.assert_close(g, torch.zeros_like(g), atol=1e-12, rtol=0)
    away, moved = consistency_jvp(STUDENT, X, T, {}, F_teacher, "exact")
    assert tangent_norm(consistency_tangent(away, F_teacher, moved, X, T, 1.0, form)).median() > 0.1


def test_the_tangent_is_finite_at_both_ends():
    t = torch.tensor([0.0, math.pi / 2], dtype=torch.float64)
    x = X[:2].float()
    F, J = consistency_jvp(Perceptron(), x, t, {}, x, "exact")
    for r in (0.0, 0.5, 1.0):
        assert consistency_tangent(F, x, J, x, t, r, "rcm").isfinite().all()


def test_e20_normalisation_keeps_the_direction_and_bounds_the_norm():
    g = torch.randn(5, 2, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    g = g * torch.tensor([0.0, 1e-3, 0.1, 1.0, 1e30]).reshape(5, 1, 1, 1, 1)
    unit = normalise_tangent(g)
    size, before = tangent_norm(unit), tangent_norm(g)
    torch.testing.assert_close(size, before / (before + 0.1))
    assert unit.isfinite().all()
    assert (size <= 1).all()
    torch.testing.assert_close(unit[3] * (before[3] + 0.1), g[3].double())


def test_e54_the_root_mean_square_is_the_norm_over_the_root_of_the_number_of_elements():
    g = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        normalise_rms(g, 0.2), math.sqrt(12) * normalise_tangent(g, 0.2 * math.sqrt(12))
    )


def test_e21_loss_moves_the_velocity_along_the_tangent_and_nothing_else():
    F = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    g = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    loss = consistency_loss(F, g)
    torch.testing.assert_close(loss, g.detach().square().sum(1))
    loss.sum().backward()
    torch.testing.assert_close(F.grad, -2 * g.detach())
    assert g.grad is None


def test_descending_the_loss_descends_the_consistency_error(parts):
    """One gradient step on F moves f(x, t) towards that of the neighbouring, cleaner state."""
    F, F_teacher, J = parts
    g = consistency_tangent(F, F_teacher, J, X, T, 1.0)
    derivative = along_the_ode(lambda x, t: predict_x0(x, t, STUDENT(x, t)))
    moved = predict_x0(X, T, F + 0.01 * g) - predict_x0(X, T, F)
    # f falls along df/dt: the student at t is pulled to its own value at t - dt
    assert ((moved * derivative).sum(1) <= 1e-15).all()
