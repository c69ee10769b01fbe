"""DMD2: the scale and the sign of its gradient, two time scales, and a GAN that changes nothing else."""

import math
from itertools import pairwise

import pytest
import torch
from dmd2_networks import BATCH, MIXTURE, OFF, ON, SIZE, all_gradients, networks, updates
from gaussians import Gaussian, Perceptron
from spies import Spy, gradients, preset

from rcm_core.diffusion.parameterisation import RectifiedFlow, TrigFlow
from rcm_core.diffusion.trigflow import NOISE_ANGLE, diffuse, flow_time_from_angle, predict_x0
from rcm_core.errors import InputError
from rcm_core.objectives.distribution_matching import generate
from rcm_core.protocols import Networks
from rcm_core.rng import generator
from rcm_core.samplers.few_step import sample_student


@pytest.mark.parametrize("step", range(6))
def test_without_the_gan_nothing_else_changes(step):
    """The first update of a step is bit for bit the one with heads, real data and a GAN at hand; on the student's
    steps the GAN is a summand.
    """
    nets = networks(), networks(heads=False)
    with_gan = next(updates(step, nets[0], **ON))
    without = next(updates(step, nets[1], **OFF))
    assert len(list(updates(step, networks(), **OFF))) == 1
    if without.roles == ("fake",):
        assert torch.equal(with_gan.loss, without.loss)
        found = [all_gradients(update.loss, n) for update, n in zip((with_gan, without), nets)]
        assert all(torch.equal(found[0][name], found[1][name]) for name in ("student", "fake_score"))
        return
    twice = next(updates(step, again := networks(), **{**ON, "gan_weight": 0.6}))
    # linear in gan_weight, and the matching loss at 0; sums of numbers of the order of 1
    torch.testing.assert_close(2 * with_gan.loss - twice.loss, without.loss, atol=1e-13, rtol=0)
    found = [
        gradients(u.loss, n["student"]) for u, n in ((with_gan, nets[0]), (twice, again), (without, nets[1]))
    ]
    torch.testing.assert_close(2 * found[0] - found[1], found[2], atol=1e-12, rtol=0)
    assert (found[0] - found[2]).abs().max() > 1e-4


def test_a_weight_of_zero_asks_for_neither_heads_nor_real_data():
    off, on = preset("dmd2", **OFF).requirements, preset("dmd2", **ON).requirements
    assert (off.roles, off.needs, off.heads) == ({"student", "fake"}, {"condition"}, ())
    assert (on.roles, on.needs, on.heads) == ({"student", "fake", "heads"}, {"condition", "real"}, (0, 2))


@pytest.mark.parametrize("every", [2, 5])
def test_the_fake_score_learns_in_the_steps_between(every):
    method = preset("dmd2", **{**OFF, "student_every": every})
    students = [method.student_update(step) for step in range(4 * every)]
    assert students == ([True] + [False] * (every - 1)) * 4


def test_the_matching_gradient_is_minus_half_a_mean_of_the_weighted_difference():
    """dL/dxg = - k wn (D_real - D_fake) with k = 1 / elements, and 1 / batch for the mean over samples."""
    nets = networks(heads=False)
    (update,) = updates(0, nets, **OFF)
    (moving,) = nets["student"].moving
    (seen,) = nets["guided_teacher"].calls
    assert torch.equal(seen.x, nets["fake_score"].calls[0].x)
    assert torch.equal(seen.t, nets["fake_score"].calls[0].t)
    xg = predict_x0(moving.x, moving.t, nets["student"].velocity(moving.x, moving.t))
    with torch.no_grad():
        real = predict_x0(seen.x, seen.t, MIXTURE.velocity(seen.x, seen.t))
        fake = predict_x0(seen.x, seen.t, nets["fake_score"].velocity(seen.x, seen.t))
        wn = 1 / (xg - real).abs().mean(1, keepdim=True)
        slope = -wn * (real - fake) / (SIZE * 2)
    expected = gradients((slope * xg).sum(), nets["student"])
    torch.testing.assert_close(gradients(update.loss, nets["student"]), expected, atol=1e-12, rtol=1e-10)
    # 0.5 * mean of the squared step
    torch.testing.assert_close(update.loss, 0.5 * (wn * (real - fake)).square().mean(), atol=0, rtol=1e-12)
    # and what was compared is the renoised sample: unit noise at that angle
    z = (seen.x - torch.cos(seen.t)[:, None] * xg.detach()) / torch.sin(seen.t)[:, None]
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(2 * z.numel())


def test_the_gradient_is_zero_when_the_fake_score_is_the_teacher():
    nets = networks(heads=False) | {"fake_score": Spy(MIXTURE.velocity)}
    (update,) = updates(0, nets, **OFF)
    assert update.loss == 0
    assert not gradients(update.loss, nets["student"]).any()
    assert gradients(next(updates(0, other := networks(heads=False), **OFF)).loss, other["student"]).any()


def test_the_fake_score_s_loss_is_the_mean_squared_velocity_error_of_the_student_s_samples():
    nets = networks(heads=False)
    (update,) = updates(1, nets, **OFF)
    assert not nets["student"].moving
    last, (seen,) = nets["student"].calls[-1], nets["fake_score"].calls
    xg = predict_x0(last.x, last.t, nets["student"].velocity(last.x, last.t)).detach()
    z = (seen.x - torch.cos(seen.t)[:, None] * xg) / torch.sin(seen.t)[:, None]
    assert torch.allclose(diffuse(xg, z, seen.t), seen.x)
    aim = torch.cos(seen.t)[:, None] * z - torch.sin(seen.t)[:, None] * xg
    expected = (nets["fake_score"].velocity(seen.x, seen.t) - aim).square().mean()
    # z is recovered by a division by sin t
    torch.testing.assert_close(update.loss, expected, atol=0, rtol=1e-9)


def test_simulation_at_fixed_times_renoises_the_student_s_own_predictions():
    times = [1.2, 0.8, 0.3]
    nets = networks(heads=False)
    next(updates(9, nets, **{**OFF, "fixed_times": times}))  # the fourth student update: four steps
    calls = nets["student"].calls
    assert [call.t.unique().tolist() for call in calls] == [[NOISE_ANGLE], *([t] for t in times)]
    assert [call.grad for call in calls] == [False, False, False, True]
    for before, after in pairwise(calls):
        x0 = predict_x0(before.x, before.t, nets["student"].velocity(before.x, before.t)).detach()
        z = (after.x - torch.cos(after.t)[:, None] * x0) / torch.sin(after.t)[:, None]
        assert abs(float(z.std()) - 1) < 4 / math.sqrt(2 * z.numel())
        # fresh noise: uncorrelated with the state before
        correlation = (z * before.x).mean() / (z.std() * before.x.std())
        assert abs(float(correlation)) < 4 / math.sqrt(z.numel())


def test_a_simulation_by_euler_s_steps_follows_the_exact_ode():
    """With a Gaussian's velocity: the state at every angle and the sample lie on its known path, ever closer."""
    gaussian = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
    errors = []
    for steps in (100, 200):
        spy = Spy(gaussian.velocity)
        angles = torch.linspace(NOISE_ANGLE, 0.01, steps, dtype=torch.float64)[:, None].expand(-1, SIZE)
        made = generate(Networks(spy), BATCH, angles, generator(4), "euler")
        start = spy.calls[0]
        path = torch.stack([gaussian.flow(start.x, start.t, call.t) for call in spy.calls])
        errors.append(float((torch.stack([call.x for call in spy.calls]) - path).abs().max()))
        end = gaussian.flow(start.x, start.t, torch.zeros_like(start.t))
        assert (made.x - end).abs().max() < 2 * errors[-1]
    assert errors[1] < 0.05
    assert errors[1] < 0.6 * errors[0]  # of first order


@pytest.mark.parametrize("kind", ["renoise", "euler"])
def test_the_student_is_simulated_as_it_is_sampled(kind):
    """From the same noise, to the last bit; below pi/2 too. Gradients flow through the last call alone."""
    times = (1.5, 1.2, 0.8, 0.3)
    student = Spy(Perceptron(seed=1).double())
    angles = torch.tensor(times, dtype=torch.float64)[:, None].expand(-1, SIZE)
    made = generate(Networks(student), BATCH, angles, generator(4), kind)
    draws = (len(times) if kind == "renoise" else 1, *BATCH.x0.shape)
    noise = torch.randn(draws, generator=generator(4), dtype=torch.float64)
    assert torch.equal(made.x.detach(), sample_student(student.velocity, noise, {}, times, kind))
    calls = student.calls
    assert [call.grad for call in calls] == [False, False, False, True]
    alone = predict_x0(calls[-1].x, calls[-1].t, student.velocity(calls[-1].x, calls[-1].t))
    assert torch.equal(gradients(made.x.sum(), student), gradients(alone.sum(), student))


def test_the_first_angle_of_a_simulation_is_the_setting_s():
    for fixed in (None, [1.2, 0.8, 0.3]):
        nets = networks(heads=False)
        next(updates(9, nets, **{**OFF, "simulation_start": 1.3, "fixed_times": fixed}))
        angles = torch.stack([call.t for call in nets["student"].calls])
        assert (angles[0] == 1.3).all()
        assert (angles.diff(dim=0) <= 0).all()
    with pytest.raises(InputError, match="descend between simulation_start and 0"):
        preset("dmd2", **{**OFF, "simulation_start": 1.1, "fixed_times": [1.2, 0.8, 0.3]})
    assert preset("dmd2", **{**OFF, "simulation_start": 1.5708}).config.simulation_start == NOISE_ANGLE


@pytest.mark.parametrize("shift", [None, 5.0])
def test_bounds_are_the_matching_term_s_alone(shift):
    bounds = {**OFF, "dmd_mean": 2.0, "dmd_shift": shift, "matching_time_min": 0.3, "matching_time_max": 0.5}
    nets = networks(heads=False)
    list(updates(0, nets, **bounds))
    times = flow_time_from_angle(nets["guided_teacher"].calls[0].t)
    assert ((times > 0.3) & (times < 0.5)).all()
    list(updates(1, nets, **bounds))
    assert (flow_time_from_angle(nets["fake_score"].calls[-1].t) > 0.5).any()
    with pytest.raises(InputError, match=r"matching_time_min = 0\.5 is not below matching_time_max = 0\.5"):
        preset("dmd2", **{**bounds, "matching_time_min": 0.5})


@pytest.mark.parametrize("schedule", [TrigFlow(), RectifiedFlow()])
def test_sdxl_s_simulation_begins_with_unit_noise_as_the_network_s_input(schedule):
    """As released, x = z at step 999 of a variance-preserving teacher; a rectified flow's pipeline has c x = z."""
    nets = networks(heads=False)
    nets["student"].parameterisation = schedule
    next(preset("dmd2-sdxl", gan_weight=0.0).updates(Networks(**nets), BATCH, 0, generator(0)))
    (first,) = nets["student"].calls
    rng = generator(0)
    torch.rand(SIZE, generator=rng, dtype=torch.float64)  # the angles of the comparison
    z = torch.randn(1, SIZE, 2, generator=rng, dtype=torch.float64)[0]
    torch.testing.assert_close(schedule.to_network(first.x, first.t)[0], z, atol=1e-14, rtol=0)
    assert torch.equal(first.x, z) == isinstance(schedule, TrigFlow)
