import math

import pytest
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rcm_core.errors import InputError
from rcm_core.training.ema import PowerEMA, decay, power_exponent


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2])
def test_e29_exponent_gives_the_profile_its_relative_deviation(length):
    gamma = power_exponent(length)
    # mean and deviation of the density proportional to i^gamma on [0, 1]
    mean = (gamma + 1) / (gamma + 2)
    variance = (gamma + 1) / (gamma + 3) - mean**2
    assert math.isclose(math.sqrt(variance), length, rel_tol=1e-9)


def test_e29_published_values():
    """arXiv 2312.02696: lengths 0.05 and 0.10 have exponents 16.97 and 6.94."""
    assert round(power_exponent(0.05), 2) == 16.97
    assert round(power_exponent(0.10), 2) == 6.94


@pytest.mark.parametrize("length", [0.05, 0.15])
def test_e30_weights_of_the_average_follow_the_power_profile(length):
    """Averaging the unit vectors of 400 updates returns the weight of each."""
    count = 400
    module = nn.Linear(count, 1, bias=False)
    ema = PowerEMA(module, [length])
    for i in range(count):
        with torch.no_grad():
            module.weight.copy_(torch.nn.functional.one_hot(torch.tensor([i]), count))
        ema.update(module)
    weights = ema.weights(length)["weight"][0].double()
    index = torch.arange(1, count + 1, dtype=torch.float64)
    profile = index ** power_exponent(length)
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64), atol=1e-5, rtol=0)
    # a discrete recursion of the continuous profile: relative error of order 1/count where the weight is
    torch.testing.assert_close(weights, profile / profile.sum(), atol=0.03 * float(weights.max()), rtol=0)


def test_first_update_forgets_where_it_started():
    module = nn.Linear(2, 2)
    ema = PowerEMA(module, [0.05, 0.1])
    with torch.no_grad():
        module.weight.fill_(3.0)
    ema.update(module)
    assert decay(power_exponent(0.05), 0) == 0
    assert torch.equal(ema.weights(0.05)["weight"], torch.full((2, 2), 3.0))


def test_average_of_half_precision_weights_is_float32():
    module = nn.Linear(2, 2).bfloat16()
    ema = PowerEMA(module, [0.05])
    ema.update(module)
    assert ema.weights(0.05)["weight"].dtype == torch.float32


def walk(module: nn.Module, ema: PowerEMA, steps: range) -> None:
    for step in steps:
        with torch.no_grad():
            for parameter in module.parameters():
                rng = torch.Generator().manual_seed(step)
                parameter.copy_(torch.randn(parameter.shape, generator=rng))
        ema.update(module)


def test_resumed_equals_uninterrupted():
    module = nn.Linear(3, 2)
    whole, first = PowerEMA(module, [0.05, 0.1]), PowerEMA(module, [0.05, 0.1])
    walk(module, whole, range(10))
    walk(module, first, range(4))
    second = PowerEMA(module, [0.05, 0.1])
    second.load_state_dict(first.state_dict())
    walk(module, second, range(4, 10))
    assert int(second.updates) == 10
    for length in (0.05, 0.1):
        for name, average in whole.weights(length).items():
            assert torch.equal(average, second.weights(length)[name])


def test_state_of_other_lengths_is_refused():
    module = nn.Linear(2, 2)
    with pytest.raises(InputError, match="start a new run"):
        PowerEMA(module, [0.05]).load_state_dict(PowerEMA(module, [0.1]).state_dict())


def test_length_without_a_profile_is_refused():
    with pytest.raises(InputError, match="choose one below"):
        PowerEMA(nn.Linear(1, 1), [0.5])


def test_sharded_parameters_keep_sharded_averages():
    plain = nn.Linear(4, 4)
    expected = PowerEMA(plain, [0.05])
    walk(plain, expected, range(3))
    init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = nn.Linear(4, 4)
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        ema = PowerEMA(module, [0.05])
        for step in range(3):
            with torch.no_grad():
                for parameter in module.parameters():
                    rng = torch.Generator().manual_seed(step)
                    full = torch.randn(parameter.shape, generator=rng)
                    parameter.to_local().copy_(full)
            ema.update(module)
        average = ema.weights(0.05)["weight"]
        assert isinstance(average, torch.distributed.tensor.DTensor)
        assert torch.equal(average.full_tensor(), expected.weights(0.05)["weight"])
    finally:
        destroy_process_group()
