"""The embedded teachers' network and text encoder are built from the parameters."""

from __future__ import annotations

import pytest
import torch

from rcm_core.pipelines.mini import build_network, build_text_encoder, build_tokenizer

PAIRS = ("a red seven and a blue two", "a blue seven and a red two")


def digit_token(order: float, prompt: str) -> torch.Tensor:
    """Return the encoder's token for the word "seven"."""
    tokenizer = build_tokenizer(PAIRS, 12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_text_encoder(len(tokenizer), 64, 16, order)
    tokens = tokenizer([prompt], return_tensors="pt")
    hidden: torch.Tensor = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
    return hidden[prompt.split().index("seven")]


@pytest.mark.parametrize(("order", "least", "most"), [(1.0, 0.0, 0.1), (32.0, 0.2, 2.0)])
def test_order_makes_words_of_their_neighbours(order: float, least: float, most: float) -> None:
    first, second = (digit_token(order, prompt) for prompt in PAIRS)
    # both prompts have the same words: a bag of words would give 0
    assert least <= float((first - second).norm() / first.norm()) < most


def test_the_encoder_is_frozen_and_a_function_of_the_seed() -> None:
    assert torch.equal(digit_token(32.0, PAIRS[0]), digit_token(32.0, PAIRS[0]))
    assert not any(p.requires_grad for p in build_text_encoder(8, 16).parameters())


@pytest.mark.parametrize("patch", [2, 4])
def test_patches_are_tokens_and_come_back_as_pixels(patch: int) -> None:
    network = build_network(3, 2, 16, 1, 32, 8, patch)
    seen: list[torch.Size] = []
    network.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    x = torch.randn(2, 3, 1, 16, 16)
    out = network(x, torch.tensor([1.0, 2.0]), torch.randn(2, 5, 8), return_dict=False)[0]
    assert out.shape == x.shape
    assert seen == [torch.Size((2, (16 // patch) ** 2, 32))]
