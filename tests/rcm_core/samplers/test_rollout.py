"""Routes: the teacher's steps, the recorded sampler, and their times (E5, E47)."""

import math
from itertools import pairwise

import pytest
import torch
from gaussians import Gaussian
from spies import Spy

from rcm_core.diffusion.timesteps import fixed_angles, shift_flow_time
from rcm_core.diffusion.trigflow import (
    NOISE_ANGLE,
    conditional_velocity,
    diffuse,
    flow_time_from_angle,
    rotate,
)
from rcm_core.rng import generator
from rcm_core.samplers.rollout import (
    random_schedule,
    record_trajectory,
    reference_route,
    route_angles,
    teacher_steps,
)

GAUSSIAN = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
RNG = generator("walks")
X0, Z = (torch.randn(16, 2, generator=RNG, dtype=torch.float64) for _ in range(2))

PUBLISHED = (
    1.5708, 1.5423, 1.5095, 1.4714, 1.4268, 1.3741, 1.3112, 1.2356, 1.1440, 1.0331, 0.8997, 0.7425, 0.5642, 0.3734,
    0.1832, 0.0063,
)  # fmt: skip
"""TBCM's route of 16 steps at its shift of 2.5."""


def straight(x, t, condition):
    """Return the velocity of the path on which X0 and Z are constant."""
    return conditional_velocity(X0, Z, t)


def test_rotating_is_exact_for_constant_data_and_noise_in_any_number_of_steps():
    for count in (1, 3):
        angles = torch.linspace(1.4, 0.2, count + 1, dtype=torch.float64)[:, None].expand(-1, 16)
        x = diffuse(X0, Z, angles[0])
        end = teacher_steps(straight, x, angles, {}, "rotate")
        torch.testing.assert_close(end, diffuse(X0, Z, angles[-1]), atol=1e-14, rtol=0)
        assert (teacher_steps(straight, x, angles, {}, "euler") - end).abs().max() > 0.01


def test_the_two_solvers_agree_to_second_order_in_a_step():
    gaps = []
    for step in (0.02, 0.01):
        angles = torch.tensor([1.0, 1.0 - step], dtype=torch.float64)[:, None].expand(-1, 16)
        x = diffuse(X0, Z, angles[0])
        euler, turned = (
            teacher_steps(GAUSSIAN.velocity, x, angles, {}, solver) for solver in ("euler", "rotate")
        )
        gaps.append(float((euler - turned).norm()))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("solver", ["euler", "rotate"])
def test_both_solvers_converge_to_the_flow_to_first_order(solver):
    errors = []
    for count in (50, 100):
        angles = torch.linspace(1.4, 0.2, count + 1, dtype=torch.float64)[:, None].expand(-1, 16)
        x = diffuse(X0, Z, angles[0])
        end = teacher_steps(GAUSSIAN.velocity, x, angles, {}, solver)
        errors.append(float((end - GAUSSIAN.flow(x, angles[0], angles[-1])).norm()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def test_samples_may_have_their_own_angles():
    angles = torch.stack([torch.linspace(1.5, 1.0, 16), torch.linspace(1.2, 0.0, 16)]).double()
    x = diffuse(X0, Z, angles[0])
    torch.testing.assert_close(
        teacher_steps(straight, x, angles, {}, "rotate"), diffuse(X0, Z, angles[1]), atol=1e-14, rtol=0
    )


def test_a_recorded_walk_can_be_walked_again_from_any_of_its_points():
    condition = {"text": torch.zeros(16, 1)}
    spy = Spy(GAUSSIAN.velocity)
    angles = reference_route(6, 1.0)
    walk = record_trajectory(spy, Z, angles, condition)
    assert torch.equal(walk.x[0], Z)
    assert len(spy.calls) == 6
    for i, (t, s) in enumerate(pairwise([*angles, torch.zeros((), dtype=torch.float64)])):
        t, s = t.expand(16), s.expand(16)
        assert torch.equal(walk.F[i], GAUSSIAN.velocity(walk.x[i], t))
        after = rotate(walk.x[i], t, s, walk.F[i])
        assert torch.equal(after, walk.x[i + 1] if i < 5 else walk.end)
    assert all(call.condition["text"] is condition["text"] for call in spy.calls)


def test_a_fine_walk_reaches_the_data():
    """From unit noise, the exact velocity of a Gaussian gives its mean and deviation, up to the order of a step."""
    angles = fixed_angles(torch.linspace(math.pi / 2, 0, 401)[:-1].tolist(), 1, Z.device)[:, 0]
    end = record_trajectory(GAUSSIAN.velocity, Z, angles, {}).end
    exact = GAUSSIAN.flow(Z, torch.full((16,), math.pi / 2).double(), torch.zeros(16).double())
    torch.testing.assert_close(end, exact, atol=5e-3, rtol=0)


def test_walks_carry_no_gradient():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    angles = fixed_angles((1.5, 1.0), 16, Z.device)
    assert not teacher_steps(lambda x, t, c: weight * x, Z, angles, {}, "euler").requires_grad
    assert not record_trajectory(lambda x, t, c: weight * x, Z, angles[:, 0], {}).end.requires_grad


def test_e47_the_reference_route_is_the_published_one():
    found = reference_route(16, 2.5)
    assert found[0] == NOISE_ANGLE
    assert [round(float(t), 4) for t in found] == list(PUBLISHED)


def test_e47_the_flow_times_are_equally_spaced_and_shifted_twice_at_the_end():
    for shift in (0.4, 1.0, 2.5):
        tau = flow_time_from_angle(reference_route(16, shift))
        unshifted = tau / (shift - (shift - 1) * tau)
        gaps = unshifted.diff()
        torch.testing.assert_close(gaps, gaps[:1].expand(15), atol=1e-13, rtol=0)
        once = shift_flow_time(torch.tensor(1e-3, dtype=torch.float64), shift)
        torch.testing.assert_close(unshifted[-1], once, atol=1e-15, rtol=1e-10)
    assert float(once) == pytest.approx(0.0024963, abs=5e-8)  # at 2.5


def test_stratified_angles_lie_between_their_neighbours_and_fill_the_gaps():
    reference = reference_route(16, 2.5)
    routes = torch.stack(
        [route_angles("stratified", 16, 2.5, 0.0, 1.0, generator("s", i)) for i in range(400)]
    )
    assert (routes[:, 0] == NOISE_ANGLE).all()
    assert (routes.diff(dim=1) < 0).all()
    share = (routes[:, 1:] - reference[1:]) / (reference[:-1] - reference[1:])
    assert ((share >= 0) & (share <= 1)).all()
    # uniform: means within four standard errors, for each stratum
    assert (share.mean(0) - 0.5).abs().max() < 4 / math.sqrt(12 * 400)
    assert share.min() < 0.01
    assert share.max() > 0.99


def test_fixed_is_the_reference_and_asks_for_no_random_number():
    rng = generator(0)
    assert torch.equal(route_angles("fixed", 16, 2.5, 0.0, 1.0, rng), reference_route(16, 2.5))
    assert torch.equal(rng.get_state(), generator(0).get_state())


def test_log_normal_routes_are_sorted_draws_after_pure_noise():
    routes = torch.stack(
        [route_angles("log_normal", 16, 2.5, 0.2, 1.6, generator("l", i)) for i in range(400)]
    )
    assert routes.shape == (400, 16)
    assert (routes[:, 0] == NOISE_ANGLE).all()
    assert (routes.diff(dim=1) <= 0).all()
    logs = routes[:, 1:].tan().log()
    # four standard errors of 6,000 draws
    assert abs(float(logs.mean()) - 0.2) < 4 * 1.6 / math.sqrt(6000)
    assert abs(float(logs.std()) - 1.6) < 4 * 1.6 / math.sqrt(2 * 6000)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_random_schedules_descend_from_noise_within_the_shifted_bounds(shift):
    routes = torch.stack([random_schedule(8, 0.25, 0.95, shift, generator("r", i)) for i in range(200)])
    assert (routes[:, 0] == NOISE_ANGLE).all()
    assert (routes.diff(dim=1) <= 0).all()
    tau = flow_time_from_angle(routes[:, 1:])
    unshifted = tau / (shift - (shift - 1) * tau)
    assert unshifted.min() >= 0.25 - 1e-12
    assert unshifted.max() <= 0.95 + 1e-12
    assert abs(float(unshifted.mean()) - 0.6) < 4 * 0.7 / math.sqrt(12 * 1400)
    # 0.25 becomes 0.5 and 0.95 becomes 0.983 at SD3's shift of 3
    if shift == 3.0:
        assert tau.min() >= 0.5 - 1e-12
        assert tau.max() <= 0.9828


def test_a_schedule_of_one_step_is_pure_noise():
    assert random_schedule(1, 0.25, 0.95, 3.0, generator(0)).tolist() == [NOISE_ANGLE]
