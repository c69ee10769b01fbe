import math

import pytest
import torch
from gaussians import six_modes

from rcm_core.diffusion.parameterisation import EDM, RectifiedFlow, TrigFlow
from rcm_core.errors import InputError

MIXTURE = six_modes(torch.float64)


def states(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    t = torch.linspace(low, high, 64, dtype=torch.float64)
    return torch.randn(64, 2, generator=rng, dtype=torch.float64), t


def rectified_flow_network(x: torch.Tensor, time: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the exact rectified-flow velocity in its own variables: E[eps - x0 | (1 - tau) x0 + tau eps]."""
    tau = time / scale
    return MIXTURE.noise(x, 1 - tau, tau) - MIXTURE.denoise(x, 1 - tau, tau)


def edm_network(x: torch.Tensor, time: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Return the exact EDM network, from its denoiser and the preconditioning of arXiv 2206.00364, table 1."""
    sigma = (4 * time).exp()[:, None]
    root = (sigma**2 + sigma_data**2).sqrt()
    noisy = x * root  # c_in = 1 / root
    # data of deviation sigma_data is the mixture times sigma_data
    denoised = sigma_data * MIXTURE.denoise(noisy / sigma_data, torch.ones_like(sigma), sigma / sigma_data)
    return (denoised - sigma_data**2 / root**2 * noisy) / (sigma * sigma_data / root)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_e7_e8_rectified_flow_reproduces_trigflow_over_the_whole_range(scale):
    x, t = states(0.0, math.pi / 2)
    flow = RectifiedFlow(scale)
    found = flow.velocity(x, t, rectified_flow_network(*flow.to_network(x, t), scale))
    torch.testing.assert_close(found, MIXTURE.velocity(x, t), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_e9_e10_edm_reproduces_trigflow(sigma_data):
    # the oracle divides by sigma (table 1 does): below 0.01 its own rounding exceeds the tolerance
    x, t = states(0.01, 1.56)
    edm = EDM(sigma_data)
    found = edm.velocity(x, t, edm_network(*edm.to_network(x, t), sigma_data))
    torch.testing.assert_close(found, MIXTURE.velocity(x, t), atol=1e-12, rtol=1e-12)


def test_trigflow_is_the_identity():
    x, t = states(0.0, math.pi / 2)
    assert TrigFlow().to_network(x, t) == (x, t)
    assert TrigFlow().velocity(x, t, x) is x


def test_output_inverts_velocity():
    x, t = states(0.0, math.pi / 2)
    flow = RectifiedFlow()
    u = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(flow.output(x, t, flow.velocity(x, t, u)), u, atol=1e-13, rtol=0)


def test_float32_keeps_its_digits_next_to_data():
    """The usual quotient (cos t x - x0) / sin t has no correct digit at t = 1e-6."""
    x, _ = states(0.0, 1.0)
    t = torch.full((64,), 1e-6, dtype=torch.float64)
    flow = RectifiedFlow()
    u = rectified_flow_network(*flow.to_network(x, t), 1000.0)
    exact = flow.velocity(x, t, u)
    # a few float32 roundings of terms of size up to 10
    torch.testing.assert_close(flow.velocity(x.float(), t, u.float()).double(), exact, atol=3e-6, rtol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-5, math.pi / 2])
def test_edm_refuses_what_its_time_cannot_express(angle):
    x, t = torch.zeros(2, 2), torch.tensor([0.5, angle], dtype=torch.float64)
    with pytest.raises(InputError, match=r"outside \[0.0001, 1.5707\]"):
        EDM().to_network(x, t)


def test_wraps_are_differentiable_in_the_angle():
    x, t = states(0.1, 1.5)
    flow, edm = RectifiedFlow(), EDM()

    def wrapped(angle: torch.Tensor) -> torch.Tensor:
        first = flow.velocity(x, angle, rectified_flow_network(*flow.to_network(x, angle), 1000.0))
        return first - edm.velocity(x, angle, edm_network(*edm.to_network(x, angle), 1.0))

    _, tangent = torch.func.jvp(wrapped, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(tangent, torch.zeros_like(tangent), atol=1e-9, rtol=0)
