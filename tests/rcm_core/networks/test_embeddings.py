"""Modules of a student or a discriminator in addition to the teacher's network."""

import copy
import math

import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from rcm_core.jvp import jvp
from rcm_core.networks.discriminator import Head, Heads, VirtualBatchNorm
from rcm_core.networks.embeddings import FREQUENCIES, Embedding, LogVariance, waves
from rcm_core.rng import generator


def learned(module: torch.nn.Module) -> torch.nn.Module:
    """Set weights as after training."""
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
    for width, tokens, count in ((8, 20, 3), (12, 1, 1), (8, 3, 9)):  # tokens fewer than half a kernel
        features = [torch.randn(count, tokens, width) for _ in range(2)]
        found = Heads(width, 2)(features)
        assert found.shape == (count, 2, tokens)
        assert found.isfinite().all()


def test_each_head_sees_its_own_block():
    torch.manual_seed(0)
    heads, features = Heads(8, 2).eval(), [torch.randn(3, 20, 8) for _ in range(2)]
    first = heads(features)
    second = heads([features[0], features[1] + 1.0 * torch.randn(3, 20, 8)])
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.allclose(first[:, 1], second[:, 1])


def test_every_convolution_of_a_head_has_a_spectral_norm_of_one():
    torch.manual_seed(0)
    head = Head(8)
    convolutions = [layer for layer in head.modules() if isinstance(layer, torch.nn.Conv1d)]
    assert len(convolutions) == 3
    with torch.no_grad():
        for layer in convolutions:
            layer.parametrizations.weight.original.mul_(50)
    for _ in range(100):  # power iteration, one step a call in training
        head(torch.randn(2, 5, 8))
    for layer in convolutions:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        torch.testing.assert_close(norm, torch.tensor(1.0), atol=1e-3, rtol=0)


def test_tokens_of_a_head_are_in_a_circle():
    """Rotated tokens have rotated logits."""
    torch.manual_seed(0)
    head, tokens = Head(8).double().eval(), torch.randn(3, 20, 8, dtype=torch.float64)
    torch.testing.assert_close(head(tokens.roll(7, 1)), head(tokens).roll(7, 1), atol=1e-12, rtol=0)


def test_a_head_by_its_formulas():
    torch.manual_seed(0)
    head, tokens = learned(Head(4)).double().eval(), torch.randn(3, 11, 4, dtype=torch.float64)

    def normal(h):
        mean, variance = h.mean((0, 2), keepdim=True), h.var((0, 2), correction=0, keepdim=True)
        return (h - mean) / (variance + 1e-5).sqrt()

    def layer(sequence, h):
        conv, norm = sequence
        half = conv.kernel_size[0] // 2
        padded = torch.nn.functional.pad(h, (half, half), mode="circular") if half else h
        found = torch.nn.functional.conv1d(padded, conv.weight, conv.bias)
        return torch.nn.functional.leaky_relu(norm.weight * normal(found) + norm.bias, 0.2)

    h = layer(head.first, tokens.transpose(1, 2))
    h = (layer(head.second, h) + h) / 2**0.5
    expected = torch.nn.functional.conv1d(h, head.last.weight, head.last.bias)[:, 0]
    torch.testing.assert_close(head(tokens), expected, atol=1e-12, rtol=0)


def test_samples_see_those_of_their_virtual_batch_alone():
    torch.manual_seed(0)
    heads, features = Heads(8, 1).eval(), torch.randn(16, 20, 8)
    both, first = heads([features]), heads([features[:8]])
    torch.testing.assert_close(first, both[:8], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(heads([features[:4]]), both[:4])


def test_batches_that_no_eight_divide_are_split_evenly():
    norm, h = VirtualBatchNorm(2).double(), torch.randn(9, 2, 6, dtype=torch.float64)
    found = norm(h)
    for group in (found[:5], found[5:]):
        assert group.mean((0, 2)).abs().max() < 1e-12
        torch.testing.assert_close(group.var((0, 2), correction=0), torch.ones(2).double(), atol=1e-4, rtol=0)


def test_heads_go_on_from_a_checkpoint_to_the_bit():
    """The checkpoint contains the vectors of the power iteration."""
    features = [torch.randn(9, 5, 8, generator=generator("features"))]

    def step(heads, optimiser):
        optimiser.zero_grad()
        loss = heads(features).square().sum()
        loss.backward()
        optimiser.step()
        return loss.item()

    torch.manual_seed(0)
    heads = Heads(8, 1)
    optimiser = torch.optim.AdamW(heads.parameters())
    step(heads, optimiser)
    saved = copy.deepcopy((get_model_state_dict(heads), optimiser.state_dict()))
    expected = [step(heads, optimiser) for _ in range(3)]
    again = Heads(8, 1)  # other weights, other vectors
    optimiser = torch.optim.AdamW(again.parameters())
    set_model_state_dict(again, saved[0])
    optimiser.load_state_dict(saved[1])
    assert [step(again, optimiser) for _ in range(3)] == expected


def test_heads_made_from_one_seed_stay_equal_as_they_train():
    """The vectors of the power iteration are drawn with the weights and kept with them."""

    def trained() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        heads = Heads(8, 1)
        optimiser = torch.optim.Adam(heads.parameters())
        for step in range(3):
            optimiser.zero_grad()
            heads([torch.randn(4, 5, 8, generator=generator(step))]).sum().backward()
            optimiser.step()
        return heads.state_dict()

    first, second = trained(), trained()
    assert any("_u" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
