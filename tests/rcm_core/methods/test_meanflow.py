"""MeanFlow (E42, E43, E51): the exact average velocity of a Gaussian's flow, and the limits of the losses."""

import pytest
import torch
from gaussians import Gaussian, Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.diffusion.trigflow import angle_from_flow_time, flow_time_from_angle, per_sample, predict_x0
from rcm_core.losses.meanflow import (
    average_velocity_target,
    meanflow_loss,
    normalised_loss,
)
from rcm_core.objectives import meanflow
from rcm_core.objectives.consistency import States
from rcm_core.objectives.meanflow import FLOW, AverageVelocity, FlowState, along
from rcm_core.protocols import Batch, Examples, Networks
from rcm_core.rng import generator

GAUSSIAN = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
PLAIN = {"power": 0.0, "warmup": 0, "average_share": 1.0}


class Exact:
    """The average velocity (z_tau - z_r) / (tau - r) along the exact flow, as a Network with the input "end"."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, x, t, condition):
        s = angle_from_flow_time(condition["end"])
        here = per_sample(1 / (t.cos() + t.sin()), x) * x
        there = per_sample(1 / (s.cos() + s.sin()), x) * GAUSSIAN.flow(x, t, s)
        span = flow_time_from_angle(t) - condition["end"]
        return FLOW.velocity(x, t, self.factor * (here - there) / per_sample(span, x))


def states(count: int, tau: torch.Tensor) -> FlowState:
    x = torch.randn(count, 2, generator=generator("x"), dtype=torch.float64)
    t = angle_from_flow_time(tau)
    return along(States(x, t, GAUSSIAN.velocity(x, t)))


def data(count: int = 256, dtype: torch.dtype = torch.float64) -> Batch:
    x0 = six_modes(dtype).sample(count, generator("data"))
    return Batch({}, {}, x0, Examples(six_modes(dtype).sample(count, generator("real")), {}))


def the_loss(student, teacher=GAUSSIAN.velocity, seed: int = 0, step: int = 0, **changes) -> torch.Tensor:
    nets = {"student": student, "guided_teacher": teacher}
    updates = preset("meanflow", **{**PLAIN, **changes}).updates(
        Networks(**nets), data(), step, generator(seed)
    )
    return next(updates).loss


def test_e42_the_exact_average_velocity_is_a_fixed_point():
    """Both sides agree to rounding: of a quotient by the span 0.01, whose derivative divides by it again."""
    tau = torch.linspace(0.06, 0.99, 64, dtype=torch.float64)
    for end in (torch.zeros_like(tau), 0.5 * tau, tau - 0.01):
        state = states(64, tau)
        exact = AverageVelocity(Exact(), {}, end)
        derivative = exact.derivative(state, "exact")
        target = average_velocity_target(state.v, derivative, tau, end, 1.0)
        torch.testing.assert_close(target, exact(state.x, tau), atol=1e-11, rtol=1e-11)


def test_the_loss_is_zero_at_the_exact_average_velocity_and_there_alone():
    # a pair of drawn times may lie 1e-4 apart: errors of 1e-12, squared
    assert the_loss(Exact()) < 1e-20
    assert the_loss(Exact(1.01)) > 1e-5


def test_half_a_derivative_has_another_fixed_point():
    assert the_loss(Exact(), warmup=100, step=50) > 1e-3


def test_e42_the_derivative_is_along_the_flow():
    """(v, 0, 1): the average from a fixed end, seen from a point that moves with the flow."""
    tau = torch.linspace(0.1, 0.95, 32, dtype=torch.float64)
    end, state, h = 0.4 * tau, states(32, tau), 1e-5
    exact = AverageVelocity(Exact(), {}, end)

    def moved(step: float) -> torch.Tensor:
        before, after = angle_from_flow_time(tau), angle_from_flow_time(tau + step)
        x = per_sample(before.cos() + before.sin(), state.x) * state.x
        reached = GAUSSIAN.flow(x, before, after)
        return exact(per_sample(1 / (after.cos() + after.sin()), x) * reached, tau + step)

    # central differences: h^2 times third derivatives of the order of 10, rounding 1e-15 / h / span
    expected = (moved(h) - moved(-h)) / (2 * h)
    torch.testing.assert_close(exact.derivative(state, "exact"), expected, atol=1e-8, rtol=1e-8)


def test_the_difference_tends_to_forward_mode_to_second_order(monkeypatch):
    tau = torch.linspace(0.1, 0.95, 32, dtype=torch.float64)
    state = states(32, tau)
    network = AverageVelocity(Perceptron(seed=1, extras=["end"]).double(), {}, 0.5 * tau)
    exact = network.derivative(state, "exact")
    errors = []
    for step in (4e-3, 2e-3, 1e-3):
        monkeypatch.setattr(meanflow, "STEP", step)
        errors.append(float((network.derivative(state, "semi") - exact).norm()))
        assert torch.equal(network.derivative(state, "semi"), network.derivative(state, "discrete"))
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, abs=0.1)


def test_the_difference_asks_only_between_the_end_and_noise():
    """One-sided within a step of either; where both lie within a step of the state it is 0."""
    tau = torch.tensor([1e-4, 0.503, 0.5, 0.999, 0.999], dtype=torch.float64)
    end = torch.tensor([0.0, 0.5, 0.2, 0.2, 0.998], dtype=torch.float64)
    network = Spy(Perceptron(seed=1, extras=["end"]).double())
    found = AverageVelocity(network, {}, end).derivative(states(5, tau), "semi")
    later, earlier = (flow_time_from_angle(call.t) - tau for call in network.calls)
    h, none = meanflow.STEP, 0.0
    expected = torch.tensor([[h, none], [h, none], [h, -h], [none, -h], [none, none]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([later, earlier], 1), expected, atol=1e-15, rtol=0)
    assert torch.equal(found[4], torch.zeros(2, dtype=torch.float64))
    assert (found[:4] != 0).all()


def test_without_averages_it_is_flow_matching():
    """average_share = 0: the gradient of the regression on the teacher's velocity, in flow variables."""
    student = Spy(Perceptron(seed=1, extras=["end"]).double())
    loss = the_loss(student, average_share=0.0)
    x, t, condition, _ = student.moving[0]
    torch.testing.assert_close(condition["end"], flow_time_from_angle(t), atol=1e-15, rtol=0)
    u = FLOW.output(x, t, student.velocity(x, t, condition))
    v = FLOW.output(x, t, GAUSSIAN.velocity(x, t))
    regression = (u - v).square().sum(1).mean()
    torch.testing.assert_close(loss, regression, atol=0, rtol=1e-12)
    torch.testing.assert_close(
        gradients(loss, student), gradients(regression, student), atol=1e-12, rtol=1e-10
    )


def test_from_data_the_velocity_is_that_of_the_path():
    """average_share = 0: regression on eps - x0 of the real samples; teacher and prompts' samples are not asked."""
    student = Spy(Perceptron(seed=1, extras=["end"]).double())
    loss = the_loss(student, teacher=None, learn_from="data", average_share=0.0)
    x, t, condition, _ = student.moving[0]
    x0 = data().real.x0
    eps = (x - per_sample(t.cos(), x) * x0) / per_sample(t.sin(), x)
    u = FLOW.output(x, t, student.velocity(x, t, condition))
    torch.testing.assert_close(loss, (u - (eps - x0)).square().sum(1).mean(), atol=0, rtol=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_state_lies_at_the_later_time_and_a_share_is_averaged(share):
    method = preset("meanflow", average_share=share, time_mean=-0.4, time_std=1.0)
    tau, end = method._times(20_000, generator(3))
    assert (end <= tau).all()
    # four standard errors of a share
    assert abs(float((end < tau).double().mean()) - share) <= 4 * (share * (1 - share) / 20_000) ** 0.5
    if share == 0:  # the later of two logit-normal draws: above the median with probability 3/4
        middle = torch.sigmoid(torch.tensor(-0.4, dtype=torch.float64))
        assert abs(float((tau > middle).double().mean()) - 0.75) < 4 * (0.75 * 0.25 / 20_000) ** 0.5


def test_e43_power_weighs_and_bounds_the_gradient():
    c = 0.01
    sizes = torch.logspace(-4, 4, 200, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator(1)).double(), dim=1)
    target = torch.zeros(200, 3, dtype=torch.float64)
    for power in (0.0, 0.5, 1.0):
        u = (sizes[:, None] * direction).requires_grad_()
        meanflow_loss(u, target, power, c).sum().backward()
        norm = u.grad.norm(dim=1)
        torch.testing.assert_close(norm, 2 * sizes / (sizes**2 + c) ** power)
        # 2 s / (s^2 + c) is largest at s = sqrt c; 2 s / sqrt(s^2 + c) is below 2
        bound = {0.0: float("inf"), 0.5: 2.0, 1.0: c**-0.5}[power]
        assert norm.max() <= bound * (1 + 1e-12)
        torch.testing.assert_close(u.grad / norm[:, None], direction)
        if power == 1.0:
            assert norm.max() > 0.99 * bound


@pytest.mark.parametrize("loss", [meanflow_loss, normalised_loss])
def test_e43_and_e51_the_target_carries_no_gradient(loss):
    u, target = (torch.randn(4, 3, generator=generator(i), requires_grad=True) for i in range(2))
    loss(u, target, 1.0, 0.01).sum().backward()
    assert target.grad is None


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_e51_the_gradient_has_the_size_of_the_root_mean_square_whatever_the_dimension(power):
    c, sizes = 10.0, torch.logspace(-4, 6, 100, dtype=torch.float64)
    direction = torch.randn(100, 3, generator=generator(1)).double()
    direction *= 3**0.5 / direction.norm(dim=1, keepdim=True)  # root mean square 1
    for repeats in (1, 7):
        u = (sizes[:, None] * direction).repeat(1, repeats).requires_grad_()
        each = normalised_loss(u, torch.zeros_like(u), power, c)
        each.sum().backward()
        size = sizes / (sizes + c) ** power
        torch.testing.assert_close(each.detach(), size**2)
        torch.testing.assert_close(u.grad, 2 * u.detach() * (size / sizes / (3 * repeats) ** 0.5)[:, None])
        if power == 1.0:
            assert u.grad.norm(dim=1).max() < 2


def test_normalise_is_the_limit_of_e51():
    """Without averages: (E51) of the regression on the teacher's velocity."""
    student = Spy(Perceptron(seed=1, extras=["end"]).double())
    loss = the_loss(student, average_share=0.0, limit="normalise", power=1.0, constant=10.0)
    x, t, condition, _ = student.moving[0]
    u = FLOW.output(x, t, student.velocity(x, t, condition))
    rms = (u - FLOW.output(x, t, GAUSSIAN.velocity(x, t))).square().mean(1).sqrt()
    torch.testing.assert_close(loss, (rms / (rms + 10)).square().mean(), atol=0, rtol=1e-10)


def test_a_jump_to_time_zero_is_the_clean_prediction_of_the_plain_network():
    """z - tau u(z, tau, end 0) is D(x, t); without the input "end" a network is at end 0."""
    tau = torch.linspace(0.05, 1.0, 32, dtype=torch.float64)
    t, x = angle_from_flow_time(tau), torch.randn(32, 2, generator=generator(5), dtype=torch.float64)
    network = Perceptron(seed=1, extras=["end"]).double()
    torch.nn.init.normal_(network.extras["end"].layers[2].weight, generator=generator(6))
    z = per_sample(1 / (t.cos() + t.sin()), x) * x
    with torch.no_grad():
        u = AverageVelocity(network, {}, torch.zeros_like(tau))(z, tau)
        clean = predict_x0(x, t, network(x, t, {}))
        elsewhere = AverageVelocity(network, {}, 0.5 * tau)(z, tau)
    torch.testing.assert_close(z - per_sample(tau, z) * u, clean, atol=1e-13, rtol=1e-12)
    assert (elsewhere - u).abs().max() > 0.1


def test_at_end_zero_the_exact_network_is_the_consistency_function():
    t = torch.linspace(0.1, torch.pi / 2, 32, dtype=torch.float64)
    x = torch.randn(32, 2, generator=generator(7), dtype=torch.float64)
    F = Exact()(x, t, {"end": torch.zeros_like(t)})
    torch.testing.assert_close(
        predict_x0(x, t, F), GAUSSIAN.flow(x, t, torch.zeros_like(t)), atol=1e-13, rtol=1e-12
    )
