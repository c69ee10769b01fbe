import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from gaussians import Gaussian

from rcm_core.diffusion.parameterisation import EDM, RectifiedFlow, TrigFlow
from rcm_core.diffusion.timesteps import fixed_angles
from rcm_core.diffusion.trigflow import flow_time_from_angle, predict_x0
from rcm_core.errors import InputError
from rcm_core.rng import generator
from rcm_core.samplers.few_step import Sampler, renoise_steps, sample_student

GAUSSIAN = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
ANGLES = (math.pi / 2, 1.3, 1.0, 0.6)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_e28_exact_consistency_function_gives_the_exact_distribution(steps):
    """For a Gaussian the sampler is affine in its noise, so mean and covariance are computed without samples."""

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
    x = renoise_steps(lambda x, t, _: parameter * x, noise, {}, fixed_angles(ANGLES[:2], 3, noise.device))
    assert not x.requires_grad
    only = renoise_steps(
        lambda x, t, _: parameter * x, noise[:1], {}, fixed_angles(ANGLES[:1], 3, noise.device)
    )
    assert torch.equal(only, noise[0])


@pytest.mark.parametrize(
    ("angles", "message"),
    [
        ((1.5, 1.0, 0.5), r"3 angles \(renoise\) but 2 noise tensors"),
        ((1.0, 1.5), "descend"),
        ((1.0, 1.0), "descend"),
    ],
)
def test_bad_angles(angles, message):
    with pytest.raises(InputError, match=message):
        sample_student(GAUSSIAN.velocity, torch.zeros(2, 1, 2), {}, angles)
    with pytest.raises(InputError, match="a single one for euler"):
        sample_student(GAUSSIAN.velocity, torch.zeros(2, 1, 2), {}, (1.5, 1.0), "euler")


@pytest.mark.parametrize("angles", [ANGLES, (1.5, 1.1, 0.2), (0.7,)])
@pytest.mark.parametrize("kind", ["renoise", "euler"])
def test_e28_in_rectified_flow_time_is_what_it_is_in_angles(kind, angles):
    """x += (tau' - tau) u and x = (1 - tau') x0 + tau' z on the states of a pipeline, which starts from unit noise
    whatever its first time; ``u`` is any function of state and time.
    """
    flow, rng = RectifiedFlow(), torch.Generator().manual_seed(2)
    noise = torch.randn(len(angles), 5, 3, generator=rng, dtype=torch.float64)[
        : 1 if kind == "euler" else None
    ]
    mix = torch.randn(3, 3, generator=rng, dtype=torch.float64)

    def network(state, time):
        return torch.tanh(state @ mix) * (1 + time[:, None] / 1000)

    def velocity(x, t, condition):
        return flow.velocity(x, t, network(*flow.to_network(x, t)))

    state = noise[0]
    taus = [*flow_time_from_angle(torch.tensor(angles, dtype=torch.float64)).tolist(), 0.0]
    for i, (tau, after) in enumerate(pairwise(taus)):
        u = network(state, torch.full((5,), 1000 * tau, dtype=torch.float64))
        if kind == "euler" or after == 0:
            state = state + (after - tau) * u
        else:
            state = (1 - after) * (state - tau * u) + after * noise[i + 1]
    found = sample_student(velocity, noise, {}, angles, kind)
    # the same in float64; states are at most some tens of units
    torch.testing.assert_close(found, state, atol=1e-12, rtol=1e-12)


def test_from_pure_noise_the_first_state_is_the_noise_to_the_bit():
    """cos + sin of pi/2 rounds to 1, so training's simulation (walk) and the sampler have the same states."""
    noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(3))
    angles = fixed_angles(ANGLES[:3], 4, noise.device)
    x = renoise_steps(GAUSSIAN.velocity, noise, {}, angles)
    expected = predict_x0(x, angles[-1], GAUSSIAN.velocity(x, angles[-1]))
    assert torch.equal(sample_student(GAUSSIAN.velocity, noise, {}, ANGLES[:3]), expected)


@pytest.mark.parametrize("schedule", [RectifiedFlow(1000.0), TrigFlow(), EDM()])
@pytest.mark.parametrize("kind", ["renoise", "euler"])
def test_e28_the_first_network_input_is_unit_noise_whatever_the_schedule(schedule, kind):
    """Below pi/2 that is (cos t + sin t) z for a rectified flow and z for a variance-preserving network."""

    class Network:
        parameterisation = schedule
        inputs: ClassVar[list[torch.Tensor]] = []

        def __call__(self, x, t, condition):
            self.inputs.append(schedule.to_network(x, t)[0])
            return GAUSSIAN.velocity(x, t)

    z = torch.randn(2 if kind == "renoise" else 1, 8, 2, generator=generator(0), dtype=torch.float64)
    sample_student(Network(), z, {}, (1.4, 1.0), kind)
    torch.testing.assert_close(Network.inputs[0], z[0], atol=1e-15, rtol=0)


def test_euler_s_steps_converge_to_the_exact_solution_at_first_order():
    noise = torch.randn(1, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = torch.tensor([math.pi / 2, 0.0], dtype=torch.float64)[:, None].expand(2, 16)
    exact = GAUSSIAN.flow(noise[0], ends[0], ends[1])

    def error(steps):
        angles = [math.pi / 2 * (1 - i / steps) for i in range(steps)]
        return float((sample_student(GAUSSIAN.velocity, noise, {}, angles, "euler") - exact).abs().max())

    errors = [error(steps) for steps in (50, 100, 200)]
    # first order: the error halves when the steps double
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2


def test_a_sampler_knows_its_times_and_its_noise():
    sampler = Sampler.of("renoise", [[1.5708, 1.3], [1.5707], [1.2, 0.9, 0.1]])
    assert sampler.times == ((math.pi / 2, 1.3), (math.pi / 2,), (1.2, 0.9, 0.1))
    assert sampler.steps == (1, 2, 3)
    assert sampler.angles(1) == (math.pi / 2,)
    assert [sampler.draws(n) for n in sampler.steps] == [1, 2, 3]
    assert [Sampler.of("euler", sampler.times).draws(n) for n in sampler.steps] == [1, 1, 1]
    assert Sampler.of("renoise", sampler.times) == sampler
    with pytest.raises(
        InputError,
        match=r"^4 steps asked for, but sampler\.times has lists for 1, 2, 3; ask for one of these",
    ):
        sampler.angles(4)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], r"sampler\.times is empty; give a list"),
        ([[]], r"sampler\.times has \[\]; expected angles that descend"),
        ([[1.5708], [1.0, 1.3]], r"sampler\.times has \[1\.0, 1\.3\]; expected angles that descend"),
        ([[1.3, 1.3]], r"has \[1\.3, 1\.3\]; expected angles that descend"),
        ([[1.5708, 1.57075]], r"has \[1\.5708, 1\.57075\]; expected .* 1\.5707 and above mean it"),
        ([[1.58]], r"has \[1\.58\]; expected angles that descend, from at most pi/2"),
        ([[1.5708, 0.0]], r"has \[1\.5708, 0\.0\]; expected .* to above 0"),
        ([[math.nan]], r"has \[nan\]; expected"),
        ([[1.5708, 1.3], [1.5, 1.0]], "has several lists of 2 angles; keep one for 2 steps"),
    ],
)
def test_bad_times_are_one_sentence_that_names_the_setting(times, message):
    with pytest.raises(InputError, match=message) as caught:
        Sampler.of("renoise", times)
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match=r"sampler\.kind = 'ddim'; expected renoise or euler"):
        Sampler.of("ddim", [[1.5708]])
