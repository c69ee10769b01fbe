"""LCM (E46, E41): a pair of grid points, an EMA target, the Huber loss."""

import pytest
import torch
from gaussians import Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.diffusion.trigflow import flow_time_from_angle, predict_x0, rotate
from rcm_core.losses.regression import pair_loss
from rcm_core.protocols import Batch, Networks, TargetUpdate
from rcm_core.rng import generator

MIXTURE = six_modes(torch.float64)
BATCH = Batch({}, {}, MIXTURE.sample(64, generator("data")))


def asked(target=None, **changes) -> tuple[torch.Tensor, Spy, Spy]:
    """Return the loss, the student and the target (by default the student itself), each with its call."""
    student = Spy(Perceptron(seed=1).double())
    target = Spy(target or student.velocity)
    nets = {"student": student, "target": target, "guided_teacher": MIXTURE.velocity}
    (update,) = preset("lcm", **changes).updates(Networks(**nets), BATCH, 0, generator(0))
    return update.loss, student, target


def test_with_the_student_as_target_and_l2_it_is_dcm_s_pair_on_a_grid():
    loss, student, target = asked(points=10, skip=1, shift=1.0, loss="l2", target_rate=1.0)
    (x, t, _, _), (near, s, _, _) = student.calls[0], target.calls[0]
    torch.testing.assert_close(near, rotate(x, t, s, MIXTURE.velocity(x, t)), atol=1e-14, rtol=0)
    gap = predict_x0(x, t, student.velocity(x, t)) - predict_x0(near, s, student.velocity(near, s)).detach()
    dcm = gap.square().sum(1).mean()
    torch.testing.assert_close(loss, dcm, atol=0, rtol=1e-12)
    torch.testing.assert_close(gradients(loss, student), gradients(dcm, student), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("points", "skip"), [(10, 1), (50, 4)])
def test_e46_both_sides_are_points_of_the_grid_skip_apart(points, skip):
    _, student, target = asked(points=points, skip=skip, shift=3.0)
    first, last = (net.calls[0].t for net in (student, target))
    indices = [points * tau / (3 - 2 * tau) for tau in map(flow_time_from_angle, (first, last))]
    for found in indices:
        torch.testing.assert_close(found, found.round(), atol=1e-11, rtol=0)
    assert (indices[0].round() - indices[1].round() == skip).all()
    assert indices[0].round().max() <= points
    assert indices[1].round().min() >= 0


def test_every_point_of_the_grid_is_asked_for_and_no_other():
    method = preset("lcm", points=5, skip=2, shift=1.0)
    angles = method._angles(4000, generator(1))
    found = (5 * flow_time_from_angle(angles)).round().long()
    assert found[0].unique().tolist() == [2, 3, 4, 5]
    assert found[1].unique().tolist() == [0, 1, 2, 3]


def test_one_guided_teacher_step_however_far():
    teacher = Spy(MIXTURE.velocity)
    nets = {name: Perceptron(seed=1).double() for name in ("student", "target")}
    next(
        preset("lcm", points=50, skip=20).updates(
            Networks(**nets, guided_teacher=teacher), BATCH, 0, generator(0)
        )
    )
    assert len(teacher.calls) == 1


def test_the_target_gets_no_gradient_and_follows_the_student_at_its_rate():
    other = Perceptron(seed=2).double()
    loss, student, _ = asked(other)
    loss.backward()
    assert all(p.grad is None for p in other.parameters())
    assert all(p.grad is not None for p in student.parameters())
    follows = preset("lcm", target_rate=0.05).requirements.follows
    assert follows == (TargetUpdate("target", "student", 0.05, "student"),)


def test_the_drawn_scale_reaches_teacher_student_and_target():
    spies = {name: Spy(Perceptron(seed=1).double()) for name in ("student", "target", "guided_teacher")}
    method = preset("lcm", guidance=[3.0, 7.5, 15.0], guidance_at=7.5)
    next(method.updates(Networks(**spies), BATCH, 0, generator(0)))
    given = [spy.calls[0].condition["guidance"] for spy in spies.values()]
    assert torch.equal(given[0], given[1])
    assert torch.equal(given[0], given[2])
    assert sorted(given[0].unique().tolist()) == [3.0, 7.5, 15.0]
    assert method.requirements.student_modules == {"guidance"}
    assert method.requirements.guidance == 7.5


def test_e41_huber_is_half_the_square_over_c_when_small_and_the_norm_when_large():
    d = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator(3), dtype=torch.float64), dim=1)
    c = 1e-3
    small = pair_loss(1e-6 * d, torch.zeros_like(d), "huber", c)
    # the next term is (|d| / 2 c)^2 = 2.5e-7 of it; the difference of two numbers of 1e-3 keeps 1e-16 / 5e-10
    torch.testing.assert_close(small, torch.full_like(small, 1e-12 / (2 * c)), atol=0, rtol=1e-6)
    large = pair_loss(1e3 * d, torch.zeros_like(d), "huber", c)
    torch.testing.assert_close(large, torch.full_like(large, 1e3 - c), atol=1e-9, rtol=0)
    assert torch.equal(pair_loss(d, d, "huber", c), torch.zeros(3, dtype=torch.float64))


def test_e41_huber_s_gradient_is_at_most_a_unit_vector_and_the_square_s_is_twice_the_difference():
    found = torch.randn(4, 5, generator=generator(4), dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 5, generator=generator(5), dtype=torch.float64, requires_grad=True)
    d = (found - target).detach()
    (square,) = torch.autograd.grad(pair_loss(found, target, "l2", 1.0).sum(), found)
    torch.testing.assert_close(square, 2 * d)
    (huber,) = torch.autograd.grad(pair_loss(found, target, "huber", 1.0).sum(), found)
    torch.testing.assert_close(huber, d / (d.square().sum(1, keepdim=True) + 1).sqrt())
    assert (huber.norm(dim=1) < 1).all()
    (unused,) = torch.autograd.grad(pair_loss(found, target, "l2", 1.0).sum(), target, allow_unused=True)
    assert unused is None
