"""The discriminator in latent space: trained heads on a network's features."""

import pytest
import torch
from gaussians import Perceptron
from spies import Spy
from torch import nn

from rcm_core.diffusion.trigflow import diffuse
from rcm_core.networks.discriminator import Heads
from rcm_core.objectives.adversarial import Discriminator, freeze
from rcm_core.protocols import Networks
from rcm_core.rng import generator
from rcm_core.training.parallel.activation_checkpointing import checkpoint_blocks


def networks() -> dict:
    torch.manual_seed(0)
    return {"teacher": Spy(Perceptron(seed=3).requires_grad_(False)), "discriminator": Heads(96, 2)}


def logits(nets, x0, s, seed=0):
    return Discriminator(nets["teacher"], (0, 2)).logits(
        Networks(nets["teacher"], discriminator=nets["discriminator"]),
        x0,
        {"text": torch.ones(len(x0))},
        s,
        generator(seed),
    )


def test_logits_are_of_the_features_of_the_noised_sample():
    nets, x0 = networks(), torch.randn(5, 2, generator=generator("x"))
    s = torch.linspace(0.1, 1.5, 5, dtype=torch.float64)
    found = logits(nets, x0, s)
    assert found.shape == (5, 2, 1)  # samples, heads, tokens
    (call,) = nets["teacher"].calls
    z = torch.randn(5, 2, generator=generator(0))
    assert torch.equal(call.x, diffuse(x0, z, s))
    assert torch.equal(call.t, s)
    assert torch.equal(call.condition["text"], torch.ones(5))


def test_the_gradient_reaches_the_sample_through_a_frozen_backbone_and_frozen_heads():
    nets, x0 = networks(), torch.randn(5, 2, generator=generator("x"), requires_grad=True)
    with freeze(nets["discriminator"]):
        value = logits(nets, x0, torch.full((5,), 0.3)).sum()
    value.backward()
    assert (x0.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None for p in nets["discriminator"].parameters())


@pytest.mark.parametrize("kind", ["none", "blocks", "matmuls"])
def test_what_is_made_again_in_the_backward_pass_is_frozen_too(kind):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)) for _ in range(2)))
    x = torch.randn(3, 4, generator=generator("x"), requires_grad=True)
    (expected,) = torch.autograd.grad(net(x).square().sum(), x)
    checkpoint_blocks(list(net), kind)
    with freeze(net):
        net(x).square().sum().backward()
    assert torch.equal(x.grad, expected)
    assert all(p.grad is None for p in net.parameters())


def test_frozen_leaves_every_flag_as_it_found_it():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].weight.requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]
    with freeze(net):
        assert not any(p.requires_grad for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == before
    with pytest.raises(RuntimeError, match="on purpose"), freeze(net):
        raise RuntimeError("on purpose")
    assert [p.requires_grad for p in net.parameters()] == before


def test_more_noise_hides_the_sample():
    """At pi/2 the discriminator sees only noise, so the gradient vanishes."""
    found = []
    for angle in (0.1, 1.5, torch.pi / 2):
        x0 = torch.randn(64, 2, generator=generator("x"), dtype=torch.float64, requires_grad=True)
        nets = networks()
        nets["teacher"].double()
        nets["discriminator"].double()
        logits(nets, x0, torch.full((64,), angle, dtype=torch.float64)).square().sum().backward()
        found.append(float(x0.grad.norm()))
    assert found[0] > found[1] > 1e6 * found[2]
