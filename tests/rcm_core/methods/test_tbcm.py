"""TBCM: the teacher's own routes as training points, the filter, the schedule of r."""

import math

import pytest
import torch
from gaussians import Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.diffusion.trigflow import NOISE_ANGLE, per_sample, rotate
from rcm_core.jvp import consistency_jvp
from rcm_core.losses.consistency import consistency_tangent
from rcm_core.protocols import Batch, Networks, TeacherTrajectory
from rcm_core.rng import generator
from rcm_core.samplers.rollout import record_trajectory, reference_route

MIXTURE = six_modes(torch.float64)
SIZE = 4
BATCH = Batch({"text": torch.arange(SIZE).double()[:, None]}, {}, MIXTURE.sample(SIZE, generator("data")))
ONLINE = {
    "trajectories": "online",
    "trajectory_steps": 16,
    "scheme": "fixed",
    "shift": 2.5,
    "pairs": 15,
    "warmup": 0,
}


def asked(batch: Batch = BATCH, step: int = 0, seed: int = 0, **changes):
    """Return the update, and the student and the teacher with their calls."""
    student, teacher = Spy(Perceptron(seed=1).double()), Spy(MIXTURE.velocity)
    method = preset("tbcm", **changes)
    (update,) = method.updates(Networks(student, guided_teacher=teacher), batch, step, generator(seed))
    return update, student, teacher


def recorded(size: int = SIZE, steps: int = 12, ends: torch.Tensor | None = None) -> Batch:
    noise = torch.randn(size, 2, generator=generator("noise"), dtype=torch.float64)
    walk = record_trajectory(MIXTURE.velocity, noise, reference_route(steps, 1.0), {})
    route = TeacherTrajectory(walk.x.transpose(0, 1), walk.t.expand(size, -1), walk.F.transpose(0, 1))
    text = torch.arange(size).double()[:, None]
    return Batch({"text": text}, {}, walk.end if ends is None else ends, route=route)


def test_stored_pairs_are_the_teacher_s_own_route():
    """One rotation leads from each point to the next, and the velocity is what the teacher says there."""
    method = preset("tbcm", **ONLINE)
    points = method._online(
        Networks(MIXTURE.velocity, guided_teacher=MIXTURE.velocity), BATCH, BATCH.condition, generator(0)
    )
    assert points.x.shape == (15, SIZE, 2)
    route = reference_route(16, 2.5)
    for i in range(15):
        x, t, v = points.x[i], points.t[i], points.v[i]
        assert torch.equal(t, route[i + 1].expand(SIZE))
        assert torch.equal(v, MIXTURE.velocity(x, t))
        last = i == 14
        following = torch.zeros_like(t) if last else points.t[i + 1]
        assert torch.equal(rotate(x, t, following, v), points.end if last else points.x[i + 1])


def test_every_prompt_gives_every_point_but_the_first_with_its_own_condition():
    update, student, teacher = asked(**ONLINE)
    assert len(teacher.calls) == 16  # no call besides the route's
    assert not teacher.moving
    (call,) = student.moving
    assert len(call.x) == 15 * SIZE
    assert (call.t < NOISE_ANGLE - 0.02).all()
    # point by point: the states of a prompt are those of its own row of the route
    assert torch.equal(call.condition["text"], BATCH.condition["text"].repeat(15, 1))
    for i in range(15):
        assert torch.equal(call.x[i * SIZE : (i + 1) * SIZE], teacher.calls[i + 1].x)
    assert update.loss.isfinite()


def test_the_loss_is_the_normalised_tangent_along_the_recorded_velocity():
    update, student, _ = asked(**ONLINE, consistency_weight=100.0, weighting="none")
    x, t, condition, _ = student.moving[0]
    v = MIXTURE.velocity(x, t)
    F, J = consistency_jvp(student.velocity, x, t, condition, v, "exact")
    g = consistency_tangent(F, v, J, x, t, 1.0, "scm")
    expected = 100 * (g / (g.norm(dim=1, keepdim=True) + 0.1)).square().sum(1).mean()
    torch.testing.assert_close(update.loss, expected, atol=0, rtol=1e-10)


def test_every_iteration_walks_other_routes_that_the_batch_shares():
    found = []
    for seed in (0, 1):
        _, _, teacher = asked(seed=seed, **{**ONLINE, "scheme": "stratified"})
        assert all((call.t == call.t[0]).all() for call in teacher.calls)
        found.append(torch.stack([call.t[0] for call in teacher.calls]))
    assert found[0][0] == found[1][0] == NOISE_ANGLE
    assert (found[0][1:] != found[1][1:]).all()


@pytest.mark.parametrize("pairs", [1, 4, 14])
def test_fewer_pairs_are_distinct_points_never_the_first(pairs):
    method = preset("tbcm", **{**ONLINE, "pairs": pairs})
    seen = set()
    for seed in range(200):
        chosen = method._choose_points(16, generator(seed)).tolist()
        assert len(set(chosen)) == pairs
        assert chosen == sorted(chosen)
        assert min(chosen) >= 1
        seen.update(chosen)
    assert seen == set(range(1, 16))


def test_recorded_routes_are_used_as_they_are_and_no_teacher_is_asked():
    batch = recorded()
    _, student, teacher = asked(batch, trajectories="recorded", pairs=11)
    assert not teacher.calls
    (call,) = student.moving
    assert torch.equal(call.x, batch.route.x[:, 1:].transpose(0, 1).flatten(0, 1))
    assert torch.equal(call.t, batch.route.t[:, 1:].T.flatten())
    assert torch.equal(call.condition["text"], batch.condition["text"].repeat(11, 1))


def test_recorded_and_online_routes_of_the_same_angles_have_the_same_loss():
    """From the same noise: the route is the same whether it is stored or walked."""
    online, student, _ = asked(**{**ONLINE, "shift": 1.0}, warmup_form="scm")
    noise = torch.randn(SIZE, 2, generator=generator(0), dtype=torch.float64)
    walk = record_trajectory(MIXTURE.velocity, noise, reference_route(16, 1.0), {})
    route = TeacherTrajectory(walk.x.transpose(0, 1), walk.t.expand(SIZE, -1), walk.F.transpose(0, 1))
    stored, other, _ = asked(
        Batch(BATCH.condition, {}, walk.end, route=route), trajectories="recorded", pairs=15, warmup=0
    )
    torch.testing.assert_close(stored.loss, online.loss, atol=0, rtol=1e-13)
    torch.testing.assert_close(gradients(stored.loss, other), gradients(online.loss, student))


def test_flat_pictures_are_dropped_with_the_right_probability_and_others_never():
    """Contrast m is kept with probability m / threshold."""
    count = 4000
    method = preset("tbcm", degenerate_below=1.0)
    pattern = torch.tensor([-1.0, 1.0]).repeat(8).reshape(1, 1, 1, 4, 4)
    for contrast in (0.0, 0.25, 0.7, 1.0, 3.0):
        ends = (0.3 + math.sqrt(contrast) * pattern).expand(count, 2, 1, 4, 4)
        kept = float(method._worthy(ends, generator("worthy")).double().mean())
        expected = min(contrast, 1.0)
        assert abs(kept - expected) <= 4 * math.sqrt(expected * (1 - expected) / count) + 1e-6
    everything = preset("tbcm", degenerate_below=None)
    assert everything._worthy(torch.zeros(8, 2, 1, 4, 4), generator(0)).all()


def test_a_dropped_route_loses_all_of_its_points_and_is_not_counted_as_broken():
    """Half of the routes end flat: the loss is that of the other half alone."""
    ends = torch.randn(8, 1, 1, 4, 4, generator=generator("ends"), dtype=torch.float64) * 10
    ends[::2] = 0.5
    batch = recorded(8, ends=ends)
    changes = {"trajectories": "recorded", "pairs": 11, "warmup": 0}
    filtered, student, _ = asked(batch, **changes, degenerate_below=1.0)
    assert filtered.scalars["nonfinite"] == 0
    route = TeacherTrajectory(*(part[1::2] for part in batch.route))
    condition = {"text": batch.condition["text"][1::2]}
    half = Batch(condition, {}, ends[1::2], route=route)
    alone, other, _ = asked(half, **changes)
    torch.testing.assert_close(filtered.loss, alone.loss, atol=0, rtol=1e-12)
    torch.testing.assert_close(gradients(filtered.loss, student), gradients(alone.loss, other))


def test_r_warms_up_holds_and_calms_down():
    method = preset(
        "tbcm", warmup=4000, tangent_anneal_start=15000, tangent_anneal_steps=2000, tangent_anneal_to=0.75
    )
    expected = {0: 0.0, 1000: 0.25, 4000: 1.0, 14999: 1.0, 15000: 1.0, 16000: 0.875, 17000: 0.75, 10**6: 0.75}
    assert {step: method._r(step) for step in expected} == pytest.approx(expected)
    never = preset(
        "tbcm", warmup=4000, tangent_anneal_start=None, tangent_anneal_steps=2000, tangent_anneal_to=0.75
    )
    assert never._r(10**6) == 1.0


def test_r_scales_the_part_of_the_tangent_that_holds_the_derivative():
    """Calmed to 0 from the first step: velocity matching at the route's points."""
    update, student, _ = asked(
        **ONLINE,
        tangent_anneal_start=0,
        tangent_anneal_steps=1,
        tangent_anneal_to=0.0,
        step=5,
        consistency_weight=1.0,
        warmup_form="scm",
    )
    x, t, _, _ = student.moving[0]
    g = per_sample(t.cos().square(), x) * (MIXTURE.velocity(x, t) - student.velocity(x, t)).detach()
    expected = (g / (g.norm(dim=1, keepdim=True) + 0.1)).square().sum(1).mean()
    torch.testing.assert_close(update.loss, expected, atol=0, rtol=1e-12)


def test_the_teacher_walks_at_the_scale_that_the_student_is_given():
    spy = Spy(Perceptron(seed=1, extras=["guidance"]).double())
    teacher = Spy(MIXTURE.velocity)
    method = preset("tbcm", **ONLINE, guidance=[4.0, 4.5, 5.0], guidance_at=4.5)
    next(method.updates(Networks(spy, guided_teacher=teacher), BATCH, 0, generator(0)))
    given = teacher.calls[0].condition["guidance"]
    assert all(torch.equal(call.condition["guidance"], given) for call in teacher.calls)
    assert all(torch.equal(call.condition["guidance"], given.repeat(15)) for call in spy.calls)
