"""Tangents through an unmodified diffusers transformer."""

import pytest
import torch
from diffusers.models import embeddings

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.trigflow import per_sample
from rcm_core.jvp import consistency_jvp, flash_jvp, jvp
from rcm_core.pipelines.mini import build_network

X = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
A = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T = torch.tensor([0.4, 1.2], dtype=torch.float64)
TEXT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def network(monkeypatch) -> torch.nn.Module:
    """Two blocks with weights so large that every part matters, entirely in float64.

    The module casts to float32 inside; making that cast the identity changes no formula and lets central
    differences be an oracle to eight digits instead of three.
    """
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    rng = torch.Generator().manual_seed(3)
    net = build_network(channels=1, heads=2, head_dim=12, layers=2, ffn_dim=32, text_dim=8)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3, generator=rng)
    assert embeddings.get_timestep_embedding(T, 16).dtype == torch.float64
    return net


def velocity(network):
    flow = RectifiedFlow(time_scale=1.0)

    def call(x, t, condition):
        state, time = flow.to_network(x, t)
        return flow.velocity(x, t, network(state, time, condition["text"], return_dict=False)[0])

    return call


def test_e16_forward_mode_agrees_with_central_differences(network):
    F = velocity(network)
    h = 1e-5
    value, J = consistency_jvp(F, X, T, {"text": TEXT}, A, "exact")
    s = T.cos() * T.sin()
    step = h * per_sample(s, X) * A
    with torch.no_grad():
        forward, backward = F(X + step, T + h * s, {"text": TEXT}), F(X - step, T - h * s, {"text": TEXT})
        plain = F(X, T, {"text": TEXT})
    torch.testing.assert_close(value, plain, atol=1e-12, rtol=1e-12)
    # h^2 times third derivatives, rounding 1e-15 / h
    torch.testing.assert_close(J, (forward - backward) / (2 * h), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("which", ["state", "time"])
def test_each_tangent_alone_agrees_with_central_differences(network, which):
    F = velocity(network)
    h = 1e-5
    dx, dt = (A, None) if which == "state" else (None, torch.ones_like(T))
    with torch.no_grad(), flash_jvp():
        _, found = jvp(lambda x, t: F(x, t, {"text": TEXT}), (X, T), (dx, dt))
    step_x, step_t = (h * A, 0.0) if which == "state" else (0.0, h)
    with torch.no_grad():
        ahead, behind = F(X + step_x, T + step_t, {"text": TEXT}), F(X - step_x, T - step_t, {"text": TEXT})
    torch.testing.assert_close(found, (ahead - behind) / (2 * h), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_forward_ad_and_torch_func_agree_with_and_without_gradient(network, backend):
    F = velocity(network)

    def call(x):
        return F(x, T, {"text": TEXT})

    with flash_jvp(backend):
        with torch.no_grad():
            value, found = jvp(call, (X,), (A,))
        with_gradient, same = jvp(call, (X,), (A,))
        _, functional = torch.func.jvp(call, (X,), (A,))
    torch.testing.assert_close(same, found, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(functional, found, atol=1e-12, rtol=1e-12)
    gradients = torch.autograd.grad(with_gradient.square().sum(), list(network.parameters()))
    plain = torch.autograd.grad(call(X).square().sum(), list(network.parameters()))
    torch.testing.assert_close(value, with_gradient.detach(), atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(gradients, plain):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-9)


def test_without_the_mode_pytorch_has_no_rule(network):
    with pytest.raises(NotImplementedError), torch.no_grad():
        jvp(lambda x: velocity(network)(x, T, {"text": TEXT}), (X,), (A,))


def test_float32_network_as_it_is_trained():
    """No cast removed: the tangent is that of the float64 network to float32 precision."""
    net = build_network(channels=1, heads=2, head_dim=12, layers=1, ffn_dim=32, text_dim=8).eval()
    condition = {"text": TEXT.float()}
    _, exact = consistency_jvp(velocity(net), X.float(), T, condition, A.float(), "exact")
    _, semi = consistency_jvp(velocity(net), X.float(), T, condition, A.float(), "semi")
    assert exact.dtype == torch.float32
    # differences in float32: 1e-7 / 1e-4 relative to the velocity
    torch.testing.assert_close(semi, exact, atol=2e-2, rtol=0)
