"""rCM: the scale of its two terms, whose ratio is the published lambda, and of the fake score's."""

import pytest
import torch
from gaussians import Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.diffusion.trigflow import flow_time_from_angle, predict_x0, rotate
from rcm_core.losses.distribution_matching import distribution_gradient
from rcm_core.protocols import Batch, Networks
from rcm_core.rng import generator

MIXTURE = six_modes(torch.float64)
SIZE = 32
BATCH = Batch({}, {}, MIXTURE.sample(SIZE, generator("data")))
CHANGES = {
    "warmup": 2,
    "student_every": 3,
    "simulation_steps": 4,
    "dmd_weight": 2.0,
    "consistency_weight": 100.0,
    "fixed_times": None,
}


def updates(step: int, **changes):
    nets = {
        "student": Spy(Perceptron(seed=1).double()),
        "fake_score": Spy(Perceptron(seed=2).double()),
        "guided_teacher": Spy(MIXTURE.velocity),
    }
    method = preset("rcm", **{**CHANGES, **changes})
    return list(method.updates(Networks(**nets), BATCH, step, generator(0, step))), nets


@pytest.mark.parametrize("step", [2, 8])
def test_the_matching_term_is_a_sum_with_the_gradient_twice_e24(step):
    (consistency, matching), nets = updates(step)
    moving, seen = nets["student"].moving[1], nets["guided_teacher"].calls[1]
    xg = predict_x0(moving.x, moving.t, nets["student"].velocity(moving.x, moving.t))
    with torch.no_grad():
        real, fake = (
            predict_x0(seen.x, seen.t, nets[name].velocity(seen.x, seen.t, {}))
            for name in ("guided_teacher", "fake_score")
        )
        gradient = distribution_gradient(xg, real, fake)
    torch.testing.assert_close(matching.loss, 2 * gradient.square().sum(1).mean(), atol=0, rtol=1e-12)
    expected = gradients((2 * 2 * gradient * xg).sum(1).mean(), nets["student"])
    torch.testing.assert_close(gradients(matching.loss, nets["student"]), expected, atol=1e-11, rtol=1e-10)
    # the normalised tangent's square is below 1
    assert 0 < consistency.loss < 100


def test_discrete_consistency_is_dcm_bit_for_bit_and_matching_comes_on_top():
    grid = {"points": 48, "skip": 1, "shift": 5.0, "solver": "euler"}
    dcm = preset("dcm", **grid, consistency_weight=100.0)
    (alone,), _ = updates(2, discrete=grid, dmd_weight=0.0)
    (first, matching), nets = updates(2, discrete=grid)
    (theirs,) = dcm.updates(Networks(**nets), BATCH, 2, generator(0, 2))
    assert torch.equal(alone.loss, theirs.loss)
    assert torch.equal(first.loss, theirs.loss)
    assert matching.roles == ("student",)


def test_the_fake_score_s_term_is_a_sum():
    (update,), nets = updates(3)
    last, (seen,) = nets["student"].calls[-1], nets["fake_score"].calls
    xg = predict_x0(last.x, last.t, nets["student"].velocity(last.x, last.t)).detach()
    cos, sin = seen.t.cos()[:, None], seen.t.sin()[:, None]
    aim = cos * (seen.x - cos * xg) / sin - sin * xg
    expected = (nets["fake_score"].velocity(seen.x, seen.t) - aim).square().sum(1).mean()
    # the noise is recovered by a division by sin t
    torch.testing.assert_close(update.loss, expected, atol=0, rtol=1e-9)


def test_the_fake_score_does_not_learn_from_the_teacher():
    _, nets = updates(3)
    assert not nets["guided_teacher"].calls
    assert not nets["student"].moving


def test_bounds_are_the_matching_term_s_alone():
    """With p_D far towards noise, the times of matching are moved inside, those of the fake score are not."""
    narrow = {"dmd_mean": 3.0, "matching_time_min": 0.2, "matching_time_max": 0.6}
    _, nets = updates(2, **narrow)
    times = flow_time_from_angle(nets["guided_teacher"].calls[1].t)
    assert ((times > 0.2) & (times < 0.6)).all()
    _, nets = updates(3, **narrow)
    assert (flow_time_from_angle(nets["fake_score"].calls[0].t) > 0.6).any()


def test_a_simulation_by_euler_s_steps_has_one_noise():
    """The second student update simulates two steps: the second state is (E5) of the first."""
    _, nets = updates(5, simulation="euler")
    first, last = nets["student"].calls[-2:]
    assert (first.grad, last.grad) == (False, True)
    along = rotate(first.x, first.t, last.t, nets["student"].velocity(first.x, first.t))
    torch.testing.assert_close(last.x, along.detach(), atol=1e-14, rtol=0)
