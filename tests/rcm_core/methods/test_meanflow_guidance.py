"""MeanFlow's conditions: dropped ones, and guidance by the student itself (E50), on one picture per condition."""

import pytest
import torch
from spies import Spy, preset

from rcm_core.diffusion.guidance import Guided
from rcm_core.diffusion.trigflow import flow_time_from_angle, per_sample
from rcm_core.errors import InputError
from rcm_core.losses.meanflow import guided_velocity
from rcm_core.objectives.meanflow import FLOW
from rcm_core.protocols import Batch, Examples, Networks
from rcm_core.rng import generator

PLAIN = {"power": 0.0, "warmup": 0, "average_share": 1.0}
REAL = torch.tensor([0.5, -0.7], dtype=torch.float64)
MIX = {"omega": 0.4, "kappa": 0.6, "interval": [0.0, 1.0]}


def points(real: torch.Tensor, count: int = 256) -> Batch:
    """Return a batch with one picture per condition: at ``real`` [2] for condition 1, at the origin for condition 0."""
    place = torch.randn(count, 1, generator=generator("place"), dtype=torch.float64)
    null = {"place": torch.zeros(1, 1, dtype=torch.float64)}
    return Batch({}, null, torch.zeros(count, 2), Examples(place * real, {"place": place}))


class Straight:
    """The average velocity, between any two times, of pictures that lie at ``place`` times ``unit`` [2]."""

    def __init__(self, unit: torch.Tensor) -> None:
        self.unit = unit

    def __call__(self, x, t, condition):
        z = per_sample(1 / (t.cos() + t.sin()), x) * x
        return FLOW.velocity(
            x, t, (z - condition["place"] * self.unit) / per_sample(flow_time_from_angle(t), x)
        )


def guided_loss(student, **changes) -> torch.Tensor:
    """Return the loss from data with the condition kept (its drop probability is 1e-9)."""
    settings = {**PLAIN, "learn_from": "data", "condition_dropout": 1e-9, "self_guidance": MIX, **changes}
    return next(preset("meanflow", **settings).updates(Networks(student), points(REAL), 0, generator(0))).loss


@pytest.mark.parametrize(("omega", "kappa"), [(0.2, 0.92), (1.0, 0.5), (2.0, 0.0), (0.25, 0.75)])
def test_e50_the_scale_is_omega_over_one_minus_kappa(omega, kappa):
    v, null = torch.randn(2, 64, 3, generator=generator("v"), dtype=torch.float64)
    guided = Guided(lambda x, t, condition: condition["u"], omega / (1 - kappa), {"u": null})(
        v, torch.zeros(64), {"u": v}
    )
    torch.testing.assert_close(guided_velocity(v, guided, null, omega, kappa), guided, atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("mix", [(0.2, 0.92), (1.0, 0.5), (2.0, 0.0)])
def test_self_guidance_draws_the_student_past_the_data_by_its_scale_and_to_no_other_place(mix):
    """One picture per condition: the lines are straight, so that the guided place is exact for every pair of times."""
    scale = mix[0] / (1 - mix[1])
    section = {"omega": mix[0], "kappa": mix[1], "interval": [0.0, 1.0]}
    # (z - x0) / tau at tau down to 1e-3, squared
    assert guided_loss(Straight(scale * REAL), self_guidance=section) < 1e-18
    assert guided_loss(Straight(1.2 * scale * REAL), self_guidance=section) > 1e-3
    assert guided_loss(Straight(scale * REAL), self_guidance=None) > 1e-3
    assert guided_loss(Straight(REAL), self_guidance=None) < 1e-18


def test_outside_the_interval_and_without_the_condition_the_velocity_is_that_of_the_data():
    """average_share = 0: u - target of every sample, from the student's own answers."""
    method = preset(
        "meanflow",
        **{**PLAIN, "average_share": 0.0},
        learn_from="data",
        condition_dropout=0.4,
        self_guidance={**MIX, "interval": [0.3, 0.6]},
    )
    student, batch = Spy(Straight(1.3 * REAL)), points(REAL, 4096)
    loss = next(method.updates(Networks(student), batch, 0, generator(0))).loss
    _, t, condition, _ = student.calls[-1]
    place, tau = batch.real.condition["place"], flow_time_from_angle(t)
    kept = condition["place"] == place
    assert torch.equal(condition["place"], kept * place)
    # four standard errors of a share
    assert abs(float(kept.double().mean()) - 0.6) < 4 * (0.6 * 0.4 / 4096) ** 0.5
    inside = kept & ((tau >= 0.3) & (tau <= 0.6))[:, None]
    assert 0 < inside.sum() < kept.sum()
    # u and its target differ in the place of the picture alone: (target - u) tau = learned - wanted
    learned = 1.3 * condition["place"]
    wanted = torch.where(inside, (MIX["omega"] + MIX["kappa"] * 1.3) * place, place)
    expected = ((learned - wanted) * REAL / tau[:, None]).square().sum(1).mean()
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-9)


def test_guidance_of_scale_one_without_its_own_share_is_none():
    one = {"omega": 1.0, "kappa": 0.0, "interval": [0.0, 1.0]}
    plain = guided_loss(Straight(2 * REAL), self_guidance=None)
    assert torch.equal(guided_loss(Straight(2 * REAL), self_guidance=one), plain)


def test_the_teacher_is_asked_under_the_condition_that_the_student_learns():
    student, teacher = (Spy(Straight(k * REAL)) for k in (1.0, 2.0))
    method = preset("meanflow", **PLAIN, condition_dropout=0.4)
    batch = points(REAL, 4096)
    batch = batch._replace(condition=batch.real.condition, x0=batch.real.x0)
    next(method.updates(Networks(student, guided_teacher=teacher), batch, 0, generator(0)))
    asked = teacher.calls[0].condition["place"]
    assert abs(float((asked == 0).double().mean()) - 0.4) < 4 * (0.6 * 0.4 / 4096) ** 0.5
    assert all(torch.equal(call.condition["place"], asked) for call in student.calls)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learn_from": "teacher", "condition_dropout": 0.1}, "guided already; set self_guidance to null"),
        ({"learn_from": "data", "condition_dropout": 0.0}, "raise condition_dropout"),
    ],
)
def test_self_guidance_without_a_use_or_a_null_condition_is_refused(changes, message):
    with pytest.raises(InputError, match=f"self_guidance: .*{message}"):
        preset("meanflow", **changes, self_guidance=MIX)


def test_an_interval_that_descends_is_refused():
    with pytest.raises(InputError, match=r"self_guidance\.interval = .*expected two times that ascend"):
        guided_loss(Straight(REAL), self_guidance={**MIX, "interval": [0.6, 0.3]})
