"""What a student or a discriminator has besides the teacher's network."""

import math

import torch

from rcm_core.extras import FREQUENCIES, Embedding, Head, Heads, LogVariance, waves
from rcm_core.jvp import jvp
from rcm_core.rng import generator


def learned(module: torch.nn.Module) -> torch.nn.Module:
    """Weights as after training."""
    rng = generator("learned")
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, 0.3, generator=rng)
    return module


def test_waves_are_cosines_and_sines_of_the_first_frequencies():
    found = waves(torch.tensor([0.0, math.pi / 2], dtype=torch.float64))
    assert found.shape == (2, 2 * FREQUENCIES)
    assert found[0].tolist() == [1.0] * FREQUENCIES + [0.0] * FREQUENCIES
    expected = [round(math.cos(k * math.pi / 2)) for k in range(1, FREQUENCIES + 1)]
    torch.testing.assert_close(found[1, :FREQUENCIES], torch.tensor(expected).double(), atol=1e-14, rtol=0)


def test_an_embedding_adds_nothing_before_training_and_nothing_at_zero_ever():
    embedding, values = Embedding(6), torch.tensor([0.0, 0.5, 3.0])
    assert torch.equal(embedding(values), torch.zeros(3, 6))
    found = learned(embedding)(values)
    assert torch.equal(found[0], torch.zeros(6))
    assert (found[1:].abs().max(1).values > 0.01).all()


def test_an_embedding_learns_from_its_first_gradient():
    embedding = Embedding(6)
    (gradient,) = torch.autograd.grad(embedding(torch.tensor([0.5])).sum(), embedding.layers[2].weight)
    assert gradient.abs().max() > 0


def test_an_embedding_is_smooth_and_takes_any_dtype():
    embedding = learned(Embedding(6)).double()
    v, h = torch.linspace(0, 1, 9, dtype=torch.float64), 1e-6
    with torch.no_grad():
        _, tangent = jvp(embedding, (v,), (torch.ones_like(v),))
        expected = (embedding(v + h) - embedding(v - h)) / (2 * h)
    torch.testing.assert_close(tangent, expected, atol=1e-7, rtol=1e-7)
    assert learned(Embedding(6))(v).dtype == torch.float32


def test_the_log_variance_is_zero_at_first_and_its_gradient_reaches_the_weights():
    head, t = LogVariance(), torch.linspace(0, 1.5, 4, dtype=torch.float64)
    assert torch.equal(head(t), torch.zeros(4))
    assert head(t).shape == (4,)
    head(t).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in head.parameters())


def test_heads_give_a_logit_for_every_block_and_token():
    torch.manual_seed(0)
    for width in (8, 32, 12):  # 12 is no multiple of the groups
        features = [torch.randn(3, 20, width) for _ in range(2)]
        assert Heads(width, 2)(features).shape == (3, 2, 20)


def test_each_head_sees_its_own_block():
    torch.manual_seed(0)
    heads, features = Heads(8, 2).eval(), [torch.randn(3, 20, 8) for _ in range(2)]
    first = heads(features)
    second = heads([features[0], features[1] + 1.0 * torch.randn(3, 20, 8)])
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.allclose(first[:, 1], second[:, 1])


def test_the_last_layer_of_a_head_has_a_spectral_norm_of_one():
    torch.manual_seed(0)
    head = Head(8)
    with torch.no_grad():
        head.last.parametrizations.weight.original.mul_(50)
    for _ in range(30):  # power iteration, one step a call in training
        head(torch.randn(2, 5, 8))
    torch.testing.assert_close(torch.linalg.matrix_norm(head.last.weight[:, :, 0], 2), torch.tensor(1.0))


def test_samples_do_not_see_each_other():
    torch.manual_seed(0)
    heads, features = Heads(8, 1).eval(), torch.randn(3, 20, 8)
    together, alone = heads([features]), heads([features[1:2]])
    torch.testing.assert_close(alone, together[1:2], atol=1e-6, rtol=1e-5)
