"""The tokens of a trained text encoder contain what the words of unseen prompts mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rcm_core.benchmarks.scenes import meanings
from rcm_core.data.prompts import read_prompts
from rcm_core.errors import InputError
from rcm_core.pipelines.mini import build_text_encoder, build_tokenizer
from rcm_core.pipelines.mini_text_encoder import teach

PROMPTS = Path(__file__).parents[3] / "data/prompts/scenes"


def trained(steps: int):
    prompts = read_prompts(PROMPTS / "train.txt")
    tokenizer = build_tokenizer(prompts, 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_text_encoder(len(tokenizer), 64, 8, 32.0)
    teach(encoder, tokenizer, prompts, meanings, steps)
    return encoder, tokenizer


def sides(encoder, tokenizer, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of digits with a place, and the index of the place (one of four)."""
    prompts = [
        p for p in read_prompts(PROMPTS / f"{split}.txt") if any(0 < m[2] <= 4 for m in meanings(p).values())
    ]
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    rows = [(i, at, m[2] - 1) for i, p in enumerate(prompts) for at, m in meanings(p).items()]
    first, at, place = torch.tensor(rows).T
    return torch.cat([hidden[first, at], torch.ones(len(rows), 1)], 1).double(), place


def read(encoder, tokenizer) -> float:
    """Return the accuracy on the test prompts' places of a linear probe fitted on the training prompts."""
    x, y = sides(encoder, tokenizer, "train")
    weights = torch.linalg.lstsq(x, torch.nn.functional.one_hot(y).double()).solution
    x, y = sides(encoder, tokenizer, "test")
    return float(((x @ weights).argmax(1) == y).double().mean())


def test_places_of_unseen_prompts_are_read_where_a_random_encoder_has_them_half() -> None:
    encoder, tokenizer = trained(0)
    assert read(encoder, tokenizer) < 0.9
    encoder, tokenizer = trained(120)
    # compositions of the test split occur in no training prompt; 0.97 leaves room for rounding below the 1.0 found
    assert read(encoder, tokenizer) > 0.97
    assert not any(p.requires_grad for p in encoder.parameters())


def test_it_is_a_function_of_its_arguments() -> None:
    (first, _), (second, _) = trained(3), trained(3)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("three fives", {1: (5, 0, 0, 2)}),
        ("a photo of a red seven", {5: (7, 1, 0, 0)}),
        ("a five right of a seven", {1: (5, 0, 2, 1), 5: (7, 0, 1, 1)}),
        ("the digit three with the digit nine", {2: (3, 0, 5, 1), 6: (9, 0, 6, 1)}),
        ("a blue two above a white six on black", {2: (2, 3, 3, 1), 6: (6, 6, 4, 1)}),
    ],
)
def test_what_words_mean(prompt: str, expected: dict[int, tuple[int, ...]]) -> None:
    assert meanings(prompt) == expected


def test_a_benchmark_that_does_not_say_what_words_mean_is_refused(tmp_path: Path) -> None:
    from rcm_core.config.sections import MiniTraining
    from rcm_core.pipelines.mini import save_pipeline

    settings = MiniTraining(
        layers=1, heads=1, head_dim=8, ffn_dim=8, text_dim=16, text_length=8, steps=1, batch=1, lr=0.1,
        ema_length=0.1, condition_dropout=0.0, checkpoint_every=1, text_steps=5,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"text_steps > 0, but this benchmark defines no"):
        save_pipeline(tmp_path, (1, 1, 8, 8), ["a seven"], settings, 3.0, 0)
