import math

import pytest
import torch
from gaussians import Perceptron, six_modes

from rcm_core.errors import InputError
from rcm_core.jvp import consistency_jvp, jvp, tangent

TEACHER = six_modes(torch.float64)
STUDENT = Perceptron(seed=5).double()
X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.linspace(0.0, math.pi / 2, 24, dtype=torch.float64)
F_TEACHER = TEACHER.velocity(X, T)


def scaled_derivative(kind: str) -> torch.Tensor:
    return consistency_jvp(STUDENT, X, T, {}, F_TEACHER, kind)[1]


@pytest.mark.parametrize(("kind", "equation"), [("semi", "E22"), ("discrete", "E23")])
def test_e22_e23_differences_approach_the_exact_tangent_at_first_order(kind, equation, monkeypatch):
    exact = scaled_derivative("exact")
    errors = []
    for h in (1e-2, 1e-3, 1e-4):
        monkeypatch.setattr(tangent, "ANGLE_STEP", h)
        errors.append(float((scaled_derivative(kind) - exact).abs().max()))
    assert 8 < errors[0] / errors[1] < 12, equation
    assert 8 < errors[1] / errors[2] < 12, equation
    # at the published step the error is h times half a second derivative
    assert errors[2] < 1e-3


@pytest.mark.parametrize("kind", ["exact", "semi", "discrete"])
def test_all_kinds_return_the_same_value_without_gradient(kind):
    F, found = consistency_jvp(STUDENT, X, T, {}, F_TEACHER, kind)
    torch.testing.assert_close(F, STUDENT(X, T).detach(), atol=1e-14, rtol=0)
    assert not F.requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize("kind", ["semi", "discrete"])
def test_float32_differences_stay_usable_and_finite_at_both_ends(kind):
    """Close to data the step shrinks with the angle, so no network is called at a negative angle."""
    asked = []
    student = Perceptron(seed=5)

    def velocity(x, t, condition):
        asked.append(float(t.min()))
        return student(x, t)

    t = torch.tensor([1e-5, 1e-3, 0.5, math.pi / 2], dtype=torch.float64)
    F_teacher = F_TEACHER[:4].float()
    exact = consistency_jvp(student, X[:4].float(), t, {}, F_teacher, "exact")[1]
    found = consistency_jvp(velocity, X[:4].float(), t, {}, F_teacher, kind)[1]
    assert min(asked) >= 0
    # float32 differences: 1e-7 * |F| / 1e-4
    torch.testing.assert_close(found, exact, atol=1e-2, rtol=0)


def test_rotation_terms_are_those_of_trigflow():
    """For a velocity that turns with the angle itself, F = cos t a - sin t b, the discrete quotient is exact:

    (cos h F(t) - F(t - h)) / sin h = dF/dt for every h, since F(t - h) = cos h F(t) - sin h dF/dt.
    """
    a, b = torch.randn(2, 24, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def turning(x, t, condition):
        return t.cos()[:, None] * a - t.sin()[:, None] * b

    for kind in ("semi", "discrete"):
        found = consistency_jvp(turning, X, T, {}, F_TEACHER, kind)[1]
        exact = consistency_jvp(turning, X, T, {}, F_TEACHER, "exact")[1]
        # rounding 1e-16 / 1e-4, and at t = 0 the smallest step, whose rounding cos t sin t = 0 removes
        torch.testing.assert_close(found, exact, atol=1e-11, rtol=0)


def test_missing_tangent_is_zero():
    value, moved = jvp(lambda a, b: a * b, (X, X), (None, torch.ones_like(X)))
    assert torch.equal(value, X * X)
    assert torch.equal(moved, X)
    _, still = jvp(lambda a, b: a * b, (X, X), (None, None))
    assert torch.equal(still, torch.zeros_like(X))


def test_unknown_kind():
    with pytest.raises(InputError, match="choose exact, semi or discrete"):
        consistency_jvp(STUDENT, X, T, {}, F_TEACHER, "exakt")
