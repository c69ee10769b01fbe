import math

import pytest
import torch

from rcm_core.diffusion.trigflow import (
    angle_from_flow_time,
    conditional_velocity,
    diffuse,
    flow_time_from_angle,
    per_sample,
    predict_x0,
    rotate,
)

ANGLES = torch.tensor([0.0, 1e-6, 0.3, math.pi / 4, 1.4, math.pi / 2], dtype=torch.float64)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, 2, 1, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))


def test_e1_path_begins_at_data_and_ends_at_noise(pair):
    x0, z = pair
    assert torch.equal(diffuse(x0, z, torch.zeros(6, dtype=torch.float64)), x0)
    # cos(pi/2) is 6e-17 in float64
    torch.testing.assert_close(diffuse(x0, z, ANGLES[-1:].expand(6)), z, atol=1e-15, rtol=1e-15)


def test_e2_velocity_is_the_derivative_of_the_path(pair):
    x0, z = pair
    h = 1e-5
    difference = (diffuse(x0, z, ANGLES + h) - diffuse(x0, z, ANGLES - h)) / (2 * h)
    # h^2/6 = 2e-11, rounding 1e-16 / h = 1e-11
    torch.testing.assert_close(conditional_velocity(x0, z, ANGLES), difference, atol=1e-9, rtol=0)


def test_e4_clean_prediction_inverts_the_path(pair):
    x0, z = pair
    found = predict_x0(diffuse(x0, z, ANGLES), ANGLES, conditional_velocity(x0, z, ANGLES))
    torch.testing.assert_close(found, x0, atol=1e-14, rtol=0)


def test_e4_boundary_condition_holds_for_any_velocity(pair):
    x, F = pair
    assert torch.equal(predict_x0(x, torch.zeros(6, dtype=torch.float64), F), x)


def test_e5_rotation_follows_the_path_exactly_and_to_zero_is_the_clean_prediction(pair):
    x0, z = pair
    x, F = diffuse(x0, z, ANGLES), conditional_velocity(x0, z, ANGLES)
    target = ANGLES.flip(0)
    torch.testing.assert_close(rotate(x, ANGLES, target, F), diffuse(x0, z, target), atol=1e-14, rtol=0)
    assert torch.equal(rotate(x, ANGLES, torch.zeros_like(ANGLES), F), predict_x0(x, ANGLES, F))


def test_e6_flow_time_and_angle_are_inverse_and_keep_the_signal_to_noise_ratio():
    tau = flow_time_from_angle(ANGLES)
    torch.testing.assert_close(angle_from_flow_time(tau), ANGLES, atol=1e-15, rtol=1e-12)
    torch.testing.assert_close((tau / (1 - tau))[:-1], ANGLES[:-1].tan(), rtol=1e-12, atol=0)
    assert tau[0] == 0
    assert tau[-1] == 1


def test_coefficients_take_the_dtype_of_the_state():
    like = torch.zeros(6, 2, 3, dtype=torch.bfloat16)
    value = per_sample(ANGLES.cos(), like)
    assert value.dtype == torch.bfloat16
    assert value.shape == (6, 1, 1)
