"""Regression on what the teacher's routes end in: the exact consistency function is its fixed point."""

import math

import pytest
import torch
from gaussians import Gaussian, Perceptron
from spies import Spy, gradients, preset

from rcm_core.diffusion.trigflow import predict_x0
from rcm_core.protocols import Batch, Networks, TeacherTrajectory
from rcm_core.rng import generator

GAUSSIAN = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
ANGLES = torch.linspace(math.pi / 2, 0.1, 8, dtype=torch.float64)


def routes(count: int = 64) -> Batch:
    """Return exact routes of a Gaussian."""
    z = torch.randn(count, 2, generator=generator("z"), dtype=torch.float64)
    start, rest = torch.full((count,), math.pi / 2, dtype=torch.float64), ANGLES.expand(count, -1)
    x = torch.stack([GAUSSIAN.flow(z, start, t.expand(count)) for t in ANGLES], 1)
    v = torch.stack([GAUSSIAN.velocity(x[:, i], rest[:, i]) for i in range(len(ANGLES))], 1)
    return Batch(
        {}, {}, GAUSSIAN.flow(z, start, torch.zeros_like(start)), route=TeacherTrajectory(x, rest, v)
    )


def asked(student, seed: int = 0, **changes) -> tuple[torch.Tensor, Spy]:
    spy = Spy(student)
    (update,) = preset("kd", **changes).updates(Networks(spy), routes(), 0, generator(seed))
    return update.loss, spy


@pytest.mark.parametrize("start_share", [0.0, 0.5, 1.0])
def test_an_exact_consistency_function_has_no_loss(start_share):
    changes = {"start_share": start_share, "loss": "l2", "huber": 0.01}
    # (rounding 1e-15 / sin 0.1)^2
    assert asked(GAUSSIAN.consistency_velocity, **changes)[0] < 1e-26
    # and the teacher's own velocity has one
    assert asked(GAUSSIAN.velocity, **changes)[0] > 1e-3


def test_the_loss_is_the_distance_to_the_end_of_the_same_route():
    student = Perceptron(seed=1).double()
    loss, spy = asked(student, loss="l2")
    ((x, t, _, _),) = spy.calls
    batch = routes()
    points = (ANGLES[None] - t[:, None]).abs().argmin(1)
    assert torch.equal(x, batch.route.x[torch.arange(64), points])
    expected = (predict_x0(x, t, student(x, t)) - batch.x0).square().sum(1).mean()
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-13)
    torch.testing.assert_close(gradients(loss, student), gradients(expected, student))


def test_start_share_is_the_share_from_pure_noise():
    _, spy = asked(GAUSSIAN.velocity, start_share=1.0)
    assert (spy.calls[0].t == math.pi / 2).all()
    starts = torch.cat([asked(GAUSSIAN.velocity, seed, start_share=0.5)[1].calls[0].t for seed in range(40)])
    share, expected = float((starts == math.pi / 2).double().mean()), 0.5 + 0.5 / len(ANGLES)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(starts))
    assert starts.unique().numel() == len(ANGLES)
