import math

import pytest
import torch
from gaussians import Gaussian

from rcm_core.errors import InputError
from rcm_core.samplers.few_step import sample_student, walk
from rcm_core.samplers.times import fixed_angles

GAUSSIAN = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
ANGLES = (math.pi / 2, 1.3, 1.0, 0.6)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_e28_exact_consistency_function_gives_the_exact_distribution(steps):
    """For a Gaussian the sampler is affine in its noise: mean and covariance need no samples."""

    def run(noise: torch.Tensor) -> torch.Tensor:
        return sample_student(GAUSSIAN.consistency_velocity, noise[:, None], {}, ANGLES[:steps])[0]

    zero = torch.zeros(steps, 2, dtype=torch.float64)
    mean = run(zero)
    directions = torch.eye(steps * 2, dtype=torch.float64).reshape(-1, steps, 2)
    columns = torch.stack([run(direction) - mean for direction in directions], 1)
    torch.testing.assert_close(mean, GAUSSIAN.mean, atol=1e-12, rtol=0)
    covariance = columns @ columns.T
    expected = GAUSSIAN.std**2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(covariance, expected, atol=1e-12, rtol=0)


def test_samples_do_not_depend_on_their_batch():
    noise = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = sample_student(GAUSSIAN.velocity, noise, {}, ANGLES)
    alone = sample_student(GAUSSIAN.velocity, noise[:, 5:6], {}, ANGLES)
    torch.testing.assert_close(alone, whole[5:6], atol=1e-14, rtol=0)


def test_each_step_is_one_network_call():
    calls = []

    def velocity(x, t, condition):
        calls.append(t[0].item())
        return GAUSSIAN.velocity(x, t)

    noise = torch.zeros(3, 2, 2, dtype=torch.float64)
    sample_student(velocity, noise, {}, ANGLES[:3])
    assert calls == list(ANGLES[:3])


def test_walk_stops_before_the_last_call_and_carries_no_gradient():
    parameter = torch.ones((), dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = walk(lambda x, t, _: parameter * x, noise, {}, fixed_angles(ANGLES[:2], 3, noise.device))
    assert not x.requires_grad
    only = walk(lambda x, t, _: parameter * x, noise[:1], {}, fixed_angles(ANGLES[:1], 3, noise.device))
    assert torch.equal(only, noise[0])


@pytest.mark.parametrize(
    ("angles", "message"),
    [((1.5, 1.0, 0.5), "3 angles but noise for 2"), ((1.0, 1.5), "descend"), ((1.0, 1.0), "descend")],
)
def test_bad_angles(angles, message):
    with pytest.raises(InputError, match=message):
        sample_student(GAUSSIAN.velocity, torch.zeros(2, 1, 2), {}, angles)
