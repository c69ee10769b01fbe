"""Order of updates, and the number of simulated steps (E27; rcm.md section 6 restated in docs/maths.md)."""

import pytest
import torch
from gaussians import Perceptron, six_modes

from rcm_core.config.base import check
from rcm_core.errors import InputError
from rcm_core.methods import dmd2, rcm
from rcm_core.protocols import Batch, Networks
from rcm_core.rng import generator

SIMULATION = {"simulation_steps": 4, "dmd_mean": 0.0, "dmd_std": 1.6, "fixed_times": None}
RCM = {
    **SIMULATION,
    "student_every": 3,
    "warmup": 2,
    "warmup_form": "rcm",
    "dmd_weight": 1.0,
    "consistency_weight": 100.0,
    "p_mean": 0.0,
    "p_std": 1.0,
}
DMD2 = {
    **SIMULATION,
    "student_every": 3,
    "dmd_weight": 1.0,
    "gan_weight": 0.0,
    "gan_critic_weight": 0.01,
    "gan_blocks": [],
}


class Counting(Perceptron):
    """A network that counts its calls with and without gradient."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.angles: list[list[float]] = []

    def forward(self, x, t, condition=None):
        self.angles.append(t.tolist())
        return super().forward(x, t, condition)


def student_calls(method, step: int) -> tuple[list[str], Counting]:
    nets = {"student": Counting(1), "fake_score": Perceptron(seed=2), "guided_teacher": Perceptron(seed=3)}
    batch = Batch({}, {}, six_modes().sample(4, generator(0)))
    roles = []
    for update in method.updates(Networks(**nets), batch, step, generator(1, step)):
        update.loss.backward()
        roles.extend(update.roles)
    return roles, nets["student"]


def test_rcm_order_of_updates():
    method = rcm.build(check(rcm.Config, RCM, "rcm"), "exact")
    roles = [student_calls(method, step)[0] for step in range(9)]
    warm, both, fake = ["student"], ["student", "student"], ["fake"]
    assert roles == [warm, warm, both, fake, fake, both, fake, fake, both]


def test_rcm_simulated_steps_cycle_with_each_networks_own_updates():
    method = rcm.build(check(rcm.Config, RCM, "rcm"), "exact")
    critic = [step for step in range(2, 20) if not method.student_update(step)]
    students = [step for step in range(2, 20) if method.student_update(step)]
    # the student calls of a fake update are the simulation alone
    assert [len(student_calls(method, s)[1].angles) for s in critic[:6]] == [1, 2, 3, 4, 1, 2]
    # a student update has the tangent pass and the gradient pass of the consistency term before it
    assert [len(student_calls(method, s)[1].angles) - 2 for s in students[:6]] == [1, 2, 3, 4, 1, 2]


def test_dmd2_order_of_updates_and_simulated_steps():
    method = dmd2.build(check(dmd2.Config, DMD2, "dmd2"), "exact")
    found = [student_calls(method, step) for step in range(9)]
    assert [roles for roles, _ in found] == [["student"], ["fake"], ["fake"]] * 3
    assert [len(student.angles) for _, student in found] == [1, 1, 2, 2, 3, 4, 3, 1, 2]


def test_simulation_descends_from_noise_and_fixed_times_are_used_as_given():
    times = [1.5, 1.4, 1.0]
    method = dmd2.build(check(dmd2.Config, {**DMD2, "fixed_times": times}, "dmd2"), "exact")
    _, student = student_calls(method, 9)  # the fourth student update: four steps
    assert [angles[0] for angles in student.angles] == [torch.pi / 2, *times]
    random = dmd2.build(check(dmd2.Config, DMD2, "dmd2"), "exact")
    _, student = student_calls(random, 9)
    angles = torch.tensor(student.angles)
    assert (angles[0] == torch.pi / 2).all()
    assert (angles.diff(dim=0) <= 0).all()
    assert angles[1].unique().numel() > 1


@pytest.mark.parametrize("form", ["rcm", "scm"])
def test_warmup_of_nothing_begins_at_full_tangent(form):
    cold = rcm.build(check(rcm.Config, {**RCM, "warmup": 0, "warmup_form": form}, "rcm"), "exact")
    late = rcm.build(check(rcm.Config, {**RCM, "warmup": 1, "warmup_form": form}, "rcm"), "exact")
    nets = {
        "student": Perceptron(seed=1),
        "fake_score": Perceptron(seed=2),
        "guided_teacher": Perceptron(seed=3),
    }
    batch = Batch({}, {}, six_modes().sample(4, generator(0)))
    first = next(cold.updates(Networks(**nets), batch, 0, generator(1)))
    warmed = next(late.updates(Networks(**nets), batch, 1, generator(1)))
    assert torch.equal(first.loss, warmed.loss)


@pytest.mark.parametrize(
    ("times", "message"),
    [([1.5], "at least 3 angles"), ([1.0, 1.5, 0.5], "descend"), ([1.6, 1.5, 1.0], "descend")],
)
def test_fixed_times_that_cannot_be_used(times, message):
    with pytest.raises(InputError, match=f"fixed_times.*{message}"):
        check(dmd2.Config, {**DMD2, "fixed_times": times}, "dmd2")
