"""ECT (E52, E53): pairs whose noise levels approach in stages, weighted by the inverse of their distance."""

import math

import pytest
import torch
from gaussians import Gaussian, Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.diffusion.trigflow import diffuse, predict_x0, rotate
from rcm_core.protocols import Batch, Examples, Networks
from rcm_core.rng import generator

MIXTURE = six_modes(torch.float64)
SIZE = 64
X0 = MIXTURE.sample(SIZE, generator("data"))
BATCH = Batch({}, {}, X0, Examples(MIXTURE.sample(SIZE, generator("real")), {}))
SMALL = {"base": 2.0, "stage_every": 10, "steepness": 8.0}


def asked(step: int = 0, student=None, teacher=MIXTURE.velocity, **changes) -> tuple[torch.Tensor, Spy]:
    """Return loss and student: first its call without gradient at the cleaner side, then that at the noisier side."""
    student = Spy(student or Perceptron(seed=1).double())
    nets = {"student": student, "guided_teacher": Spy(teacher)}
    (update,) = preset("ect", **{**SMALL, **changes}).updates(Networks(**nets), BATCH, step, generator(0))
    assert [call.grad for call in student.calls] == [False, True]
    return update.loss, student


@pytest.mark.parametrize(("step", "share"), [(0, 1 / 2), (9, 1 / 2), (10, 1 / 4), (35, 1 / 16)])
def test_e52_in_stage_i_levels_are_apart_by_q_to_the_minus_i_times_a_sigmoid(step, share):
    t = torch.tensor([0.2, 0.9, 1.4], dtype=torch.float64)
    near = preset("ect", **SMALL).nearer(t, step)
    for s, r in zip(t.tan().tolist(), near.tan().tolist()):
        n = 1 + 8 / (1 + math.exp(s / 2))  # b = 1 at data deviation 0.5
        assert r == pytest.approx(max(0.0, s * (1 - share * n)), rel=1e-12, abs=1e-15)


def test_e52_the_slope_is_a_setting():
    t = torch.tensor([0.9], dtype=torch.float64)
    near = preset("ect", **SMALL, slope=1.0).nearer(t, 10)
    s = math.tan(0.9)
    assert near.tan().item() == pytest.approx(max(0.0, s * (1 - (1 + 8 / (1 + math.exp(s))) / 4)), rel=1e-12)


def test_e52_the_nearer_side_is_never_below_clean_data():
    t = torch.linspace(0.001, 1.57, 200, dtype=torch.float64)
    for step in (0, 5000):
        near = preset("ect", **SMALL).nearer(t, step)
        assert (near >= 0).all()
        assert (near < t).all()
    assert (preset("ect", **SMALL).nearer(t, 0) == 0).any()


def test_e53_a_pair_is_one_step_of_the_teacher_and_its_loss_has_the_inverse_weight():
    loss, student = asked(step=25)
    near, far = student.calls
    torch.testing.assert_close(
        near.x, rotate(far.x, far.t, near.t, MIXTURE.velocity(far.x, far.t)), atol=1e-13, rtol=0
    )
    gap = predict_x0(far.x, far.t, student.velocity(far.x, far.t))
    gap = gap - predict_x0(near.x, near.t, student.velocity(near.x, near.t)).detach()
    expected = (gap.square().sum(1).sqrt() / (far.t.tan() - near.t.tan())).mean()
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-12)
    torch.testing.assert_close(gradients(loss, student), gradients(expected, student), atol=1e-12, rtol=1e-10)


def test_from_data_both_sides_have_the_same_image_and_noise():
    def teacher(x, t, condition=None):
        raise AssertionError("the teacher is not asked")

    _, student = asked(step=25, teacher=teacher, learn_from="data")
    near, far = student.calls
    x0 = BATCH.real.x0
    z = (far.x - far.t.cos()[:, None] * x0) / far.t.sin()[:, None]
    # z is recovered by a division by sin t, the smallest of which is about 1e-3
    torch.testing.assert_close(near.x, diffuse(x0, z, near.t), atol=1e-12, rtol=0)


def test_the_exact_solution_of_the_ode_has_a_loss_that_vanishes_with_the_distance_of_a_pair():
    """The step of the pair has an error of second order in its length (Euler, E5), so its norm over the distance
    has the first: each stage of half the distance has half of the loss.
    """
    gaussian = Gaussian(torch.tensor([0.5, -0.3], dtype=torch.float64), 0.4)
    losses = [
        float(asked(step, gaussian.consistency_velocity, gaussian.velocity, steepness=0.0)[0])
        for step in (40, 50, 60)
    ]
    assert losses[0] / losses[1] == pytest.approx(2, rel=0.2)
    assert losses[1] / losses[2] == pytest.approx(2, rel=0.1)
