"""CDM: its three losses by hand, guidance as a direction (E44), states off the route (E48), the rollout."""

import math
from itertools import pairwise

import pytest
import torch
from gaussians import Gaussian, Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.trigflow import (
    NOISE_ANGLE,
    angle_from_flow_time,
    diffuse,
    flow_time_from_angle,
    per_sample,
    predict_x0,
    rotate,
)
from rcm_core.losses.distribution_matching import augmentation_gradient, distribution_gradient
from rcm_core.protocols import Batch, Networks, TargetUpdate
from rcm_core.rng import generator

SIZE = 48
BATCH = Batch({}, {}, torch.zeros(SIZE, 2, dtype=torch.float64))  # only its shape is used
TEACHER = six_modes(torch.float64)
ONLY = {
    "on": {"augmentation_weight": 0.0, "matching_weight": 1.0, "off_trajectory_weight": 0.0},
    "off": {"augmentation_weight": 0.0, "matching_weight": 0.0, "off_trajectory_weight": 1.0},
    "augmentation": {"augmentation_weight": 1.0, "matching_weight": 0.0, "off_trajectory_weight": 1.0},
    "all": {"augmentation_weight": 0.5, "matching_weight": 2.0, "off_trajectory_weight": 3.0},
}
LONG = 5
"""Step that updates the student and has a rollout of four steps."""
SHARED = {"rollout_steps": 4, "rollout_shift": 3.0, "min_normaliser": 0.1, "student_every": 2}


def networks() -> dict[str, Spy]:
    return {
        "student": Spy(Perceptron(seed=1).double()),
        "fake_score": Spy(Perceptron(seed=2).double()),
        "teacher": Spy(TEACHER.velocity),
        "unconditional_teacher": Spy(Gaussian(torch.tensor([0.3, 0.1], dtype=torch.float64), 0.8).velocity),
    }


def updates(step: int = LONG, seed: int = 0, **changes):
    """Return every update of a step, with the networks and their calls."""
    nets = networks()
    method = preset("cdm", **{**SHARED, **changes})
    return list(method.updates(Networks(**nets), BATCH, step, generator(seed, step))), nets


def clean(spy: Spy, call) -> torch.Tensor:
    """Return the clean prediction of ``spy`` at ``call``."""
    return predict_x0(call.x, call.t, spy.velocity(call.x, call.t, {}))


def matching(nets, xg, seen) -> torch.Tensor:
    """Return L_DM of ``xg`` at the state of the call ``seen``: the mean over elements, without the factor 1/2."""
    with torch.no_grad():
        real, fake = clean(nets["teacher"], seen), clean(nets["fake_score"], seen)
        step = distribution_gradient(xg, real, fake, 0.1)
    return (xg - (xg.detach() - step)).square().mean()


def rollout(nets) -> list:
    return [call for call in nets["student"].calls if not call.grad]


def test_on_the_route_alone_it_is_plain_matching_of_a_point_of_the_rollout():
    (fake, on), nets = updates(**ONLY["on"])
    assert (fake.roles, on.roles) == (("fake",), ("student",))
    (moving,) = nets["student"].moving
    walked = rollout(nets)
    # every row is one of the rollout's own states at its own angle
    for row in range(SIZE):
        assert any(torch.equal(c.x[row], moving.x[row]) and c.t[row] == moving.t[row] for c in walked)
    assert len(moving.t.unique()) == len(walked) == 4
    (seen,) = nets["teacher"].calls
    assert not nets["unconditional_teacher"].calls
    xg = clean(nets["student"], moving)
    expected = matching(nets, xg, seen)
    torch.testing.assert_close(on.loss, expected, atol=0, rtol=1e-12)
    torch.testing.assert_close(
        gradients(on.loss, nets["student"]), gradients(expected, nets["student"]), atol=1e-12, rtol=1e-10
    )
    z = (seen.x - per_sample(seen.t.cos(), xg) * xg.detach()) / per_sample(seen.t.sin(), xg)
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(2 * z.numel())


def test_the_gradient_is_zero_when_the_fake_score_is_the_teacher():
    nets = networks() | {"fake_score": Spy(TEACHER.velocity)}
    method = preset("cdm", **SHARED, **{**ONLY["on"], "off_trajectory_weight": 1.0})
    _, on, off = method.updates(Networks(**nets), BATCH, 1, generator(0, 1))
    for update in (on, off):
        assert update.loss == 0
        assert not gradients(update.loss, nets["student"]).any()


def test_the_fake_score_learns_the_recorded_prediction_of_the_anchor():
    (fake, *_), nets = updates(**ONLY["on"])
    moving = nets["student"].moving[0]
    made = clean(nets["student"], moving).detach()
    seen = nets["fake_score"].moving[0]
    z = (seen.x - per_sample(seen.t.cos(), made) * made) / per_sample(seen.t.sin(), made)
    assert torch.allclose(diffuse(made, z, seen.t), seen.x)
    aim = per_sample(seen.t.cos(), z) * z - per_sample(seen.t.sin(), z) * made
    expected = (nets["fake_score"].velocity(seen.x, seen.t) - aim).square().mean()
    # z is recovered by a division by sin t >= 0.02
    torch.testing.assert_close(fake.loss, expected, atol=0, rtol=1e-9)
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(2 * z.numel())


def test_e48_off_the_route_the_state_is_carried_along_its_velocity_and_matched_there():
    (_, _, off), nets = updates(**ONLY["off"])
    anchor, away = nets["student"].moving
    F = nets["student"].velocity(anchor.x, anchor.t)
    expected = rotate(anchor.x, anchor.t, away.t, F)
    torch.testing.assert_close(away.x, expected, atol=1e-13, rtol=0)
    by_hand = matching(nets, clean(nets["student"], away), nets["teacher"].calls[-1])
    torch.testing.assert_close(off.loss, by_hand, atol=0, rtol=1e-12)
    # the released code: no gradient through the extrapolation
    torch.testing.assert_close(
        gradients(off.loss, nets["student"]), gradients(by_hand, nets["student"]), atol=1e-12, rtol=1e-10
    )
    assert (away.t > anchor.t).any()
    assert (away.t < anchor.t).any()


def test_e48_in_flow_time_the_state_moves_by_the_difference_of_times_times_the_velocity():
    """x' = x + (q' - sigma) v in rectified-flow variables: what the paper writes."""
    x = torch.randn(SIZE, 2, generator=generator("x"), dtype=torch.float64)
    F = torch.randn(SIZE, 2, generator=generator("F"), dtype=torch.float64)
    sigma, q = torch.rand(2, SIZE, generator=generator("q"), dtype=torch.float64)
    t, s = angle_from_flow_time(sigma), angle_from_flow_time(q)
    flow = RectifiedFlow()
    before, v = flow.to_network(x, t)[0], flow.output(x, t, F)
    after = flow.to_network(rotate(x, t, s, F), s)[0]
    torch.testing.assert_close(after, before + per_sample(q - sigma, v) * v, atol=1e-14, rtol=0)


def test_e48_where_nothing_is_extrapolated_it_is_matching_on_the_route():
    """Anchors and other times all at one angle: the state stays, and L_CDM has the form of L_DM there."""
    time = 1 - 1e-9  # the anchor of a single step is pure noise; other times are clamped to next to it
    changes = {"rollout_steps": 1, "matching_time_min": time - 1e-12, "matching_time_max": time}
    (_, on, off), nets = updates(**{**ONLY["all"], **changes, "augmentation_weight": 0.0})
    anchor, away = nets["student"].moving
    assert (anchor.t == NOISE_ANGLE).all()
    torch.testing.assert_close(away.x, anchor.x, atol=1e-8, rtol=0)  # an angle of 1e-9 apart
    made = clean(nets["student"], anchor)
    first, second = nets["teacher"].calls
    torch.testing.assert_close(on.loss, 2 * matching(nets, made, first), atol=0, rtol=1e-7)
    torch.testing.assert_close(off.loss, 3 * matching(nets, made, second), atol=0, rtol=1e-7)


def test_e48_to_no_other_angle_is_the_same_state_to_the_bit():
    x, F = (torch.randn(SIZE, 2, generator=generator(n)) for n in "xF")
    t = torch.linspace(0, NOISE_ANGLE, SIZE, dtype=torch.float64)
    assert torch.equal(rotate(x, t, t, F), x)


def test_through_the_velocity_the_value_is_the_same_and_the_gradient_whole():
    found = {}
    for through in (False, True):
        (_, _, off), nets = updates(**ONLY["off"], through_velocity=through)
        found[through] = (off, nets, gradients(off.loss, nets["student"]))
    # the rollout saw the anchors in other rows of its batch
    torch.testing.assert_close(found[True][0].loss, found[False][0].loss, atol=0, rtol=1e-12)
    assert (found[True][2] - found[False][2]).norm() > 0.01 * found[False][2].norm()
    _, nets, gradient = found[True]
    anchor, _, away = nets["student"].moving
    F = nets["student"].velocity(anchor.x, anchor.t)
    x = rotate(anchor.x, anchor.t, away.t, F)
    made = predict_x0(x, away.t, nets["student"].velocity(x, away.t))
    whole = gradients(matching(nets, made, nets["teacher"].calls[-1]), nets["student"])
    torch.testing.assert_close(gradient, whole, atol=1e-12, rtol=1e-9)


def test_e44_the_direction_is_what_guidance_of_one_plus_alpha_adds():
    rng = generator("directions")
    xg, D, null = (torch.randn(SIZE, 2, generator=rng, dtype=torch.float64) for _ in range(3))
    for alpha in (0.5, 7.0):
        guided = null + (1 + alpha) * (D - null)
        w = (xg - D).abs().mean(1, keepdim=True).clamp(min=0.1)
        found = augmentation_gradient(xg, D, null, alpha, 0.1)
        torch.testing.assert_close(-found * w, guided - D, atol=1e-13, rtol=0)
        # together with matching's D_fake - D_cond at the same weight: matching against the guided teacher
        fake = torch.randn(SIZE, 2, generator=rng, dtype=torch.float64)
        both = found + distribution_gradient(xg, D, fake, 0.1)
        torch.testing.assert_close(both * w, fake - guided, atol=1e-13, rtol=0)


def test_e44_the_augmentation_compares_condition_and_null_where_it_is_no_noisier_than_the_anchor():
    (_, on, _), nets = updates(**ONLY["augmentation"], alpha=7.0, rollout_low=0.25)
    anchor = nets["student"].moving[0]
    (null,) = nets["unconditional_teacher"].calls
    real = nets["teacher"].calls[1]  # after the matching's, which has weight 0
    assert torch.equal(null.x, real.x)
    assert torch.equal(null.t, real.t)
    assert (real.t <= anchor.t).all()
    assert (flow_time_from_angle(real.t) < flow_time_from_angle(anchor.t)).double().mean() > 0.9
    xg = clean(nets["student"], anchor)
    with torch.no_grad():
        step = augmentation_gradient(
            xg, clean(nets["teacher"], real), clean(nets["unconditional_teacher"], null), 7.0, 0.1
        )
    expected = (xg - (xg.detach() - step)).square().mean()
    torch.testing.assert_close(on.loss, expected, atol=0, rtol=1e-12)
    torch.testing.assert_close(
        gradients(on.loss, nets["student"]), gradients(expected, nets["student"]), atol=1e-12, rtol=1e-10
    )


def test_the_augmentation_s_time_is_uniform_below_the_anchor_and_others_within_the_bounds():
    method = preset("cdm", matching_time_min=0.02, matching_time_max=0.98)
    most = torch.full((20_000,), 0.6, dtype=torch.float64)
    below = flow_time_from_angle(method._matching_times(20_000, generator(1), most))
    assert below.max() <= 0.6 + 1e-12
    assert below.min() >= 0.02 - 1e-12
    assert abs(float(below.mean()) - 0.3) < 4 * 0.6 / math.sqrt(12 * 20_000) + 0.02**2
    free = flow_time_from_angle(method._matching_times(20_000, generator(2)))
    assert abs(float(free.min()) - 0.02) < 1e-12
    assert abs(float(free.max()) - 0.98) < 1e-12
    assert abs(float((free > 0.5).double().mean()) - 0.5) < 2 / math.sqrt(20_000)


def test_a_floor_bounds_the_step():
    near = torch.zeros(1, 2, dtype=torch.float64)
    assert distribution_gradient(near, near, near + 0.05, 0.1).tolist() == [[0.5, 0.5]]
    assert augmentation_gradient(near, near, near + 0.05, 2.0, 0.1).tolist() == [[1.0, 1.0]]


def test_the_rollout_s_length_is_a_function_of_the_step_alone_and_its_times_are_not():
    lengths = []
    for step in range(20):
        walks = [rollout(updates(step, seed, rollout_steps=28, **ONLY["on"])[1]) for seed in (0, 1)]
        assert len(walks[0]) == len(walks[1])
        if len(walks[0]) > 1:
            assert not torch.equal(walks[0][1].t, walks[1][1].t)
        lengths.append(len(walks[0]))
    assert min(lengths) >= 1
    assert max(lengths) <= 28
    # uniform on 1 .. 28: mean 14.5, deviation 8.1
    assert abs(sum(lengths) / 20 - 14.5) < 4 * 8.1 / math.sqrt(20)


def test_the_rollout_is_the_student_s_own_deterministic_sampler():
    _, nets = updates(3, rollout_steps=28, **ONLY["on"])
    walked = rollout(nets)
    assert (walked[0].t == NOISE_ANGLE).all()
    assert len(walked) > 2
    for before, after in pairwise(walked):
        F = nets["student"].velocity(before.x, before.t)
        torch.testing.assert_close(
            after.x, rotate(before.x, before.t, after.t, F).detach(), atol=1e-13, rtol=0
        )


def test_the_fake_score_is_pulled_towards_the_student_after_each_of_its_updates():
    assert preset("cdm", fake_score_ema_rate=0.001).requirements.follows == (
        TargetUpdate("fake", "student", 0.001, "fake"),
    )


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_fake_score_learns_in_every_iteration_and_the_student_in_one_of_a_few(every):
    for step in range(6):
        found, _ = updates(step, **{**ONLY["off"], "student_every": every})
        student = (step + 1) % every == 0
        assert [u.roles for u in found] == [("fake",)] + [("student",)] * (2 * student)
        assert preset("cdm", student_every=every).student_update(step) == student


def test_the_whole_is_the_weighted_sum_of_its_parts():
    (_, on, off), nets = updates(**ONLY["all"], alpha=0.5)
    anchor, away = nets["student"].moving
    first, augmented, second = nets["teacher"].calls
    made = clean(nets["student"], anchor)
    with torch.no_grad():
        step = augmentation_gradient(
            made,
            clean(nets["teacher"], augmented),
            clean(nets["unconditional_teacher"], nets["unconditional_teacher"].calls[0]),
            0.5,
            0.1,
        )
    expected = 2 * matching(nets, made, first) + 0.5 * step.square().mean()
    torch.testing.assert_close(on.loss, expected, atol=0, rtol=1e-12)
    torch.testing.assert_close(
        off.loss, 3 * matching(nets, clean(nets["student"], away), second), atol=0, rtol=1e-12
    )
