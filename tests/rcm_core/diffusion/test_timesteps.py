import math

import pytest
import torch

from rcm_core.diffusion.timesteps import (
    fixed_angles,
    log_normal_angles,
    log_normal_between,
    shift_flow_time,
    shifted_angles,
    shifted_between,
    simulation_angles,
)
from rcm_core.diffusion.trigflow import flow_time_from_angle
from rcm_core.rng import generator

COUNT = 200_000


@pytest.mark.parametrize(("mean", "std"), [(-0.8, 1.6), (0.7, 1.0)])
def test_e12_log_tangent_is_normal(mean, std):
    logs = log_normal_angles(COUNT, mean, std, generator(0)).tan().log()
    error = 4 * std / math.sqrt(COUNT)  # four standard errors
    assert abs(logs.mean() - mean) < error
    assert abs(logs.std() - std) < error
    # symmetric about the mean: no clipping on either side
    assert abs((logs > mean).double().mean() - 0.5) < 2 / math.sqrt(COUNT)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_e13_shifted_angles_are_shifted_uniform_flow_times(shift):
    tau = flow_time_from_angle(shifted_angles(COUNT, shift, generator(1)))
    uniform = tau / (shift - (shift - 1) * tau)  # the inverse of the shift
    expected = torch.linspace(0, 1, 11, dtype=torch.float64)
    found = uniform.quantile(expected[1:-1])
    torch.testing.assert_close(found, expected[1:-1], atol=4 * 0.5 / math.sqrt(COUNT), rtol=0)


def test_e13_shift_keeps_the_ends_and_composes():
    tau = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert torch.equal(shift_flow_time(tau, 1.0), tau)
    torch.testing.assert_close(shift_flow_time(shift_flow_time(tau, 3.0), 2.0), shift_flow_time(tau, 6.0))


def test_e27_simulation_starts_at_noise_and_descends():
    draws = log_normal_angles(3 * 50, 0.0, 1.6, generator(2)).reshape(3, 50)
    angles = simulation_angles(draws)
    assert angles.shape == (4, 50)
    assert (angles[0] == math.pi / 2).all()
    assert (angles.diff(dim=0) <= 0).all()
    assert torch.equal(angles[1], draws[0])
    one = simulation_angles(draws[:0])
    assert one.shape == (1, 50)
    assert (one == math.pi / 2).all()


def test_draws_are_a_function_of_the_generator_alone():
    assert torch.equal(log_normal_angles(5, 0, 1, generator(3)), log_normal_angles(5, 0, 1, generator(3)))
    assert not torch.equal(log_normal_angles(5, 0, 1, generator(3)), log_normal_angles(5, 0, 1, generator(4)))


def test_fixed_angles_are_the_same_for_every_sample():
    angles = fixed_angles((1.5, 1.0), 3, torch.device("cpu"))
    assert angles.tolist() == [[1.5] * 3, [1.0] * 3]


BOUNDED = [
    (
        lambda rng: log_normal_between(0.3, 0.9, COUNT, 0.4, 1.6, rng),
        lambda rng: log_normal_angles(10 * COUNT, 0.4, 1.6, rng),
    ),
    (
        lambda rng: shifted_between(0.3, 0.9, COUNT, 5.0, rng),
        lambda rng: shifted_angles(10 * COUNT, 5.0, rng),
    ),
]


@pytest.mark.parametrize(("bounded", "free"), BOUNDED)
def test_bounds_are_those_of_the_flow_time_and_keep_the_shape(bounded, free):
    """The distribution is that of rejection sampling until the time is inside the bounds."""
    found = flow_time_from_angle(bounded(generator(5)))
    assert found.min() >= 0.3 - 1e-12
    assert found.max() <= 0.9 + 1e-12
    every = flow_time_from_angle(free(generator(6)))
    inside = every[(every >= 0.3) & (every <= 0.9)]
    shares = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    marks = inside[:COUNT].quantile(shares)
    for share, mark in zip(shares, marks):
        # two samples' errors, four standard deviations
        assert abs((found <= mark).double().mean() - share) < 4 * 0.5 * math.sqrt(2 / COUNT)
