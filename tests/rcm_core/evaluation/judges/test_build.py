"""The judge is accurate on held-out scans, deterministic, and refuses unreadable input."""

from __future__ import annotations

import pytest
import torch

from rcm_core.errors import InputError
from rcm_core.evaluation.judges.base import unit_range
from rcm_core.evaluation.judges.build import judge_for
from rcm_core.evaluation.judges.classifier import FEATURES, train_classifier
from rcm_core.registry import available, find


@pytest.mark.parametrize("data", sorted(set(available("benchmarks")) - {"open"}))
@pytest.mark.parametrize("split", ["validation", "test"])
def test_judge_recognises_held_out_images(data: str, split: str) -> None:
    assert judge_for(data).accuracy_on(split) >= 0.97


def test_training_again_gives_the_same_weights_and_leaves_torch_as_it_was() -> None:
    first = judge_for("digits").digest
    train_classifier.cache_clear()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert judge_for("digits").digest == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_the_input_of_the_logits() -> None:
    judge = judge_for("digits")
    pixels = unit_range(find("benchmarks", "digits").images("validation")[0])
    features = torch.from_numpy(judge.features(pixels))
    assert features.shape == (200, FEATURES)
    head = judge._network[-1]
    rebuilt = features @ head.weight.double().T + head.bias.double()
    # float32 sums of 64 terms against float64
    assert torch.allclose(rebuilt, judge.logits(pixels).double(), atol=1e-4)


def test_correct_compares_with_what_the_prompt_asks_for() -> None:
    judge = judge_for("digits")
    pixels, labels = find("benchmarks", "digits").images("test")
    right = judge.correct(unit_range(pixels), [f"the digit {digit}" for digit in labels])
    wrong = judge.correct(unit_range(pixels), [f"the digit {(digit + 1) % 10}" for digit in labels])
    assert right.mean() == pytest.approx(judge.accuracy_on("test"))
    assert wrong.mean() < 0.03


def test_a_clip_that_runs_backwards_is_not_the_one_that_was_asked_for() -> None:
    judge = judge_for("moving_digits")
    pixels, labels = find("benchmarks", "moving_digits").images("test")
    prompts = [f"a {digit // 2} moving {('right', 'left')[digit % 2]}" for digit in labels]
    assert judge.correct(unit_range(pixels).flip(2), prompts).mean() < 0.03


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 1, 1, 8, 12), "shape"),
        (torch.full((2, 1, 1, 8, 8), -1.0), "outside"),
        (torch.full((2, 1, 1, 8, 8), float("nan")), "not finite"),
    ],
)
def test_unreadable_samples_are_refused(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge_for("digits").logits(pixels)


def test_a_prompt_is_needed_for_every_sample() -> None:
    with pytest.raises(InputError, match="one prompt per sample"):
        judge_for("digits").correct(torch.zeros(2, 1, 1, 8, 8), ["the digit 7"])
