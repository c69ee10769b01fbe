"""dCM (E45): the pair, its angles, and its limit for many points, which is sCM."""

import math
from itertools import pairwise

import pytest
import torch
from gaussians import Gaussian, Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.diffusion.timesteps import shift_flow_time
from rcm_core.diffusion.trigflow import flow_time_from_angle, predict_x0, rotate
from rcm_core.jvp import consistency_jvp
from rcm_core.losses.consistency import consistency_loss, consistency_tangent
from rcm_core.protocols import Batch, Networks
from rcm_core.rng import generator

MIXTURE = six_modes(torch.float64)
BATCH = Batch({}, {}, MIXTURE.sample(64, generator("data")))


def asked(**changes) -> tuple[torch.Tensor, Spy]:
    """Return the loss of one update, and the student with its calls: the target's, then its own."""
    student = Spy(Perceptron(seed=1).double())
    method = preset("dcm", **changes)
    (update,) = method.updates(Networks(student, guided_teacher=MIXTURE.velocity), BATCH, 0, generator(0))
    return update.loss, student


@pytest.mark.parametrize("solver", ["euler", "rotate"])
def test_e45_the_loss_is_the_squared_distance_of_a_pair_one_teacher_step_apart(solver):
    loss, student = asked(solver=solver, consistency_weight=100.0)
    (near, s, _, _), (x, t, _, _) = student.calls
    F = MIXTURE.velocity(x, t)
    expected = rotate(x, t, s, F) if solver == "rotate" else x - (t - s)[:, None] * F
    torch.testing.assert_close(near, expected, atol=1e-14, rtol=0)
    gap = predict_x0(x, t, student.velocity(x, t)) - predict_x0(near, s, student.velocity(near, s)).detach()
    by_hand = 100 * gap.square().sum(1).mean()
    torch.testing.assert_close(loss, by_hand, atol=0, rtol=1e-12)
    # nothing flows through the nearer side
    torch.testing.assert_close(gradients(loss, student), gradients(by_hand, student), atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("skip", [1, 3])
def test_e45_pairs_lie_skip_points_apart_before_the_shift_and_stay_on_the_path(skip):
    points, shift = 12, 5.0
    _, student = asked(points=points, skip=skip, shift=shift)
    s, t = (call.t for call in student.calls)
    unshifted = [tau / (shift - (shift - 1) * tau) for tau in map(flow_time_from_angle, (s, t))]
    torch.testing.assert_close(
        unshifted[1] - unshifted[0], torch.full_like(s, skip / points), atol=1e-13, rtol=0
    )
    assert (unshifted[0] > -1e-13).all()
    assert (unshifted[1] <= 1).all()
    # a continuous start, uniform over what is left: not a grid
    assert unshifted[1].unique().numel() == len(s)
    spread = (unshifted[1] - skip / points) / (1 - skip / points)
    assert abs(float(spread.mean()) - 0.5) < 4 / math.sqrt(12 * len(s))
    torch.testing.assert_close(shift_flow_time(unshifted[1], shift), flow_time_from_angle(t))


def test_several_steps_are_that_many_teacher_calls():
    teacher = Spy(MIXTURE.velocity)
    nets = {"student": Perceptron(seed=1).double(), "guided_teacher": teacher}
    next(preset("dcm", points=12, skip=3).updates(Networks(**nets), BATCH, 0, generator(0)))
    assert len(teacher.calls) == 3
    assert not teacher.moving
    assert all((b.t < a.t).all() for a, b in pairwise(teacher.calls))


def test_an_exact_consistency_function_has_a_loss_of_the_solver_s_error_alone():
    gaussian = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
    batch = Batch({}, {}, gaussian.mixture().sample(64, generator("g")))
    nets = {"student": gaussian.consistency_velocity, "guided_teacher": gaussian.velocity}
    losses = []
    for points in (100, 200):
        method = preset("dcm", points=points, skip=1, shift=5.0, solver="rotate", consistency_weight=1.0)
        losses.append(float(next(method.updates(Networks(**nets), batch, 0, generator(2))).loss))
    # a local error of second order, squared: 16 times less at half the step
    assert losses[1] < 1e-6
    assert losses[0] / losses[1] == pytest.approx(16, rel=0.15)


@pytest.mark.parametrize("solver", ["euler", "rotate"])
def test_for_many_points_the_gradient_is_that_of_scm(solver):
    """grad / 2 dt -> - sin t df/dt . dF, which is the unnormalised sCM gradient times tan t / 2: to first order."""
    errors = []
    for points in (200, 400, 800):
        loss, student = asked(points=points, skip=1, shift=1.0, solver=solver, consistency_weight=1.0)
        (_, s, _, _), (x, t, _, _) = student.calls
        a = MIXTURE.velocity(x, t)
        F, J = consistency_jvp(student.velocity, x, t, {}, a, "exact")
        g = consistency_tangent(F, a, J, x, t, 1.0, "scm")
        scm = consistency_loss(student.velocity(x, t), g)
        limit = gradients(((t - s) * t.tan() * scm).mean(), student)
        errors.append(float((gradients(loss, student) - limit).norm() / limit.norm()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    # the starts move with the number of points too, so the constant of the error is not one number
    assert orders == pytest.approx([1, 1], abs=0.1)
    assert errors[-1] < 0.02
