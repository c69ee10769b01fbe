"""sCM, its relatives and its options: what they share bit for bit, and the limits in closed form."""

import math

import pytest
import torch
from gaussians import Gaussian, Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.jvp import consistency_jvp
from rcm_core.losses.consistency import consistency_tangent
from rcm_core.objectives.consistency import along_data
from rcm_core.protocols import Batch, Examples, MethodRequirements, Networks
from rcm_core.rng import generator

MIXTURE = six_modes(torch.float64)
BATCH = Batch({}, {}, MIXTURE.sample(64, generator("data")))
PLAIN = {
    "warmup": 10,
    "consistency_weight": 100.0,
    "p_mean": -0.8,
    "p_std": 1.6,
}


def asked(name: str, step: int, student=None, batch: Batch = BATCH, teacher=MIXTURE.velocity, **changes):
    """Return the updates of one step, and the student with its calls."""
    spy = Spy(student or Perceptron(seed=1).double())
    nets = {"student": spy, "guided_teacher": teacher, "fake_score": None}
    return list(preset(name, **changes).updates(Networks(**nets), batch, step, generator(7, step))), spy


@pytest.mark.parametrize("form", ["rcm", "scm"])
def test_rcm_without_matching_is_scm_bit_for_bit(form):
    """A whole run: losses, scalars, roles, weights after every step."""
    rcm = preset("rcm", **PLAIN, warmup_form=form, dmd_weight=0.0)
    scm = preset("scm", **PLAIN, warmup_form=form, limit="normalise", weighting="none", learn_from="teacher")
    assert (
        rcm.requirements
        == scm.requirements
        == MethodRequirements(frozenset({"student"}), frozenset({"x0", "condition"}))
    )
    students = [Perceptron(seed=1) for _ in range(2)]
    optimisers = [torch.optim.Adam(s.parameters(), lr=1e-3) for s in students]
    mixture = six_modes()
    for step in range(13):  # into, and past the end of, the warm-up
        assert rcm.student_update(step)
        assert scm.student_update(step)
        batch = Batch({}, {}, mixture.sample(16, generator("data", step)))
        found = []
        for method, student, optimiser in zip((rcm, scm), students, optimisers):
            nets = {"student": student, "guided_teacher": mixture.velocity}
            (update,) = method.updates(Networks(**nets), batch, step, generator(0, step))
            optimiser.zero_grad()
            update.loss.backward()
            optimiser.step()
            found.append((update.roles, update.loss.item(), {k: v.item() for k, v in update.scalars.items()}))
        assert found[0] == found[1]
        assert all(torch.equal(a, b) for a, b in zip(*(s.parameters() for s in students)))


def test_before_the_warmup_the_gradient_is_that_of_weighted_velocity_matching():
    """r = 0: sum (F - F_T)^2 with the weight cos^2 t / (|g| + 0.1) that normalisation leaves."""
    (update,), student = asked("scm", 0, **PLAIN, warmup_form="scm", limit="normalise", weighting="none")
    x, t, _, _ = student.moving[0]
    F, a = student.velocity(x, t), MIXTURE.velocity(x, t)
    cos2 = t.cos().square()
    error = (F - a).square().sum(1)
    weight = cos2 / (cos2 * error.detach().sqrt() + 0.1)
    matching = 100 * (weight * error).mean()
    torch.testing.assert_close(
        gradients(update.loss, student), gradients(matching, student), atol=1e-10, rtol=1e-10
    )


def test_the_loss_is_the_weighted_square_of_the_limited_tangent():
    """Sum over the elements, mean over the batch, times consistency_weight."""
    for limit in ("normalise", "clip"):
        (update,), student = asked("scm", 10, **PLAIN, warmup_form="scm", limit=limit, weighting="none")
        x, t, _, _ = student.moving[0]
        a = MIXTURE.velocity(x, t)
        F, J = consistency_jvp(student.velocity, x, t, {}, a, "exact")
        g = consistency_tangent(F, a, J, x, t, 1.0, "scm")
        norm = g.norm(dim=1, keepdim=True)
        torch.testing.assert_close(update.scalars["tangent_norm"], norm.mean())
        limited = g.clamp(-1, 1) if limit == "clip" else g / (norm + 0.1)
        torch.testing.assert_close(update.loss, 100 * limited.square().sum(1).mean(), atol=0, rtol=1e-10)


def test_from_data_the_tangent_is_on_average_the_teacher_s():
    """E[velocity of the path | x] is the marginal velocity, and the tangent is affine in it: whatever the student,
    their difference is uncorrelated with every function of the state.
    """
    gaussian = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
    count, student = 40_000, Perceptron(seed=1, width=16).double()
    t = torch.full((count,), 0.7, dtype=torch.float64)
    for r in (0.0, 1.0):
        states = along_data(gaussian.mixture().sample(count, generator("real")), t, generator("path"))
        x, _, path, _ = states
        tangents = []
        for direction in (path, gaussian.velocity(x, t)):
            F, J = consistency_jvp(student, x, t, {}, direction, "exact")
            tangents.append(consistency_tangent(F, direction, J, x, t, r, "scm"))
        difference = tangents[0] - tangents[1]
        assert difference.std() > 0.1
        for probe in (torch.ones_like(x), x, (3 * x).sin(), x.flip(1)):
            terms = (difference * probe).sum(1)
            assert abs(terms.mean()) < 4 * terms.std() / math.sqrt(count)
    # the same probe sees a direction that is not the average
    assert abs((path - 0.9 * path).mul(x).sum(1).mean()) > 4 * path.std() / math.sqrt(count)


def test_from_data_neither_teacher_nor_its_samples_are_asked():
    real = Examples(MIXTURE.sample(64, generator("real")), {"text": torch.ones(64, 1)})
    batch = Batch({}, {}, torch.full((64, 2), torch.nan, dtype=torch.float64), real)
    (update,), student = asked("scm", 0, batch=batch, teacher=None, learn_from="data")
    assert update.loss.isfinite()
    assert all(torch.equal(call.condition["text"], real.condition["text"]) for call in student.calls)


def test_clipping_bounds_every_element_and_normalising_the_whole():
    wild = Perceptron(seed=1).double()
    with torch.no_grad():
        wild.layers[-1].weight.mul_(1e3)
    moves = {}
    for limit in ("clip", "normalise"):
        (update,), _ = asked("scm", 10, wild, **PLAIN, warmup_form="scm", limit=limit, weighting="none")
        moves[limit] = float(update.loss.detach()) / 100
    # two elements of at most 1; a norm below 1
    assert 1 < moves["clip"] <= 2
    assert 0.99 < moves["normalise"] < 1


@pytest.mark.parametrize("weighting", ["adaptive", "adaptive_prior"])
def test_adaptive_weighting_scales_each_sample_s_gradient_and_turns_none(weighting):
    student = Perceptron(seed=1, extras=["log_variance"]).double()
    torch.nn.init.normal_(student.extras["log_variance"].layer.weight, generator=generator(1))
    one = Batch({}, {}, BATCH.x0[:1])
    weights = student.layers
    changes = {**PLAIN, "warmup_form": "scm", "limit": "normalise"}
    (plain,), _ = asked("scm", 10, student, one, **changes, weighting="none")
    (adapted,), spy = asked("scm", 10, student, one, **changes, weighting=weighting)
    t = spy.moving[0].t
    scale = (-student.log_variance(t)).exp() / (t.tan() if weighting == "adaptive_prior" else 1)
    torch.testing.assert_close(
        gradients(adapted.loss, weights),
        scale.detach() * gradients(plain.loss, weights),
        atol=1e-9,
        rtol=1e-10,
    )


def test_the_embedded_scale_is_what_the_teacher_is_guided_by():
    teacher = Spy(MIXTURE.velocity)
    _, student = asked("scm", 0, teacher=teacher, guidance=[1.0, 1.5, 2.0], guidance_at=1.5)
    (given,) = (call.condition["guidance"] for call in teacher.calls)
    assert sorted(given.unique().tolist()) == [1.0, 1.5, 2.0]
    assert len(student.calls) == 2  # tangent and gradient pass
    assert all(torch.equal(call.condition["guidance"], given) for call in student.calls)
    method = preset("scm", guidance=[1.0, 2.0], guidance_at=1.5)
    assert (method.requirements.student_modules, method.requirements.guidance) == ({"guidance"}, 1.5)


def test_the_exact_consistency_function_is_left_alone():
    """Past the warm-up the tangent of the Gaussian's own consistency function is rounding."""
    gaussian = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
    batch = Batch({}, {}, gaussian.mixture().sample(64, generator("g")))
    (update,), _ = asked(
        "scm",
        10,
        gaussian.consistency_velocity,
        batch,
        gaussian.velocity,
        **PLAIN | {"p_mean": 0.0, "p_std": 0.5},
    )
    assert update.scalars["tangent_norm"] < 1e-12
    assert update.loss < 1e-20
    (before,), _ = asked(
        "scm",
        0,
        gaussian.consistency_velocity,
        batch,
        gaussian.velocity,
        **PLAIN | {"p_mean": 0.0, "p_std": 0.5},
    )
    assert before.scalars["tangent_norm"] > 0.01  # warm-up matches velocities, which are other functions


def test_per_sample_shapes_of_video_change_nothing():
    """[B, 1, 1, 2, 1] states give the same loss as [B, 2]."""

    class Reshaped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = Perceptron(seed=1).double()

        def forward(self, x, t, condition):
            return self.flat(x.flatten(1), t).reshape(x.shape)

    def teacher(x, t, condition):
        return MIXTURE.velocity(x.flatten(1), t).reshape(x.shape)

    video = Batch({}, {}, BATCH.x0.reshape(64, 1, 1, 2, 1))
    (flat,), _ = asked("scm", 5, **PLAIN)
    (shaped,), _ = asked("scm", 5, Reshaped(), video, teacher, **PLAIN)
    torch.testing.assert_close(shaped.loss, flat.loss, atol=0, rtol=1e-12)
