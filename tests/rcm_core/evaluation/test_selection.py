"""Selection of a candidate."""

from __future__ import annotations

import pytest

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.selection import Candidate, choose, combine


def number(value: float, width: float = 0.2) -> Estimate:
    return {"value": value, "low": value - width, "high": value + width, "n": 400}


def candidate(step: int, ema: float = 0.1) -> Candidate:
    return Candidate(f"step_{step:06d}-ema_{ema:.3f}", step, ema)


def test_the_best_mean_over_steps_wins_and_the_reason_says_so() -> None:
    scores = {
        candidate(300): {"1": number(4.0), "4": number(1.0)},
        candidate(600): {"1": number(2.0), "4": number(2.0)},
        candidate(900): {"1": number(9.0), "4": number(9.0)},
    }
    selection = choose(scores, "frechet", (1, 4))
    assert selection["choice"] == candidate(600)._asdict()
    assert [c["step"] for c in selection["candidates"]] == [300, 600, 900]
    assert selection["candidates"][0]["score"]["value"] == 2.5
    for words in (
        "lowest mean frechet over 1 and 4 steps",
        "2.000",
        "of 3 candidates",
        "no other's interval",
    ):
        assert words in selection["reason"]


def test_accuracy_is_better_high() -> None:
    scores = {candidate(300): {"1": number(0.9)}, candidate(600): {"1": number(0.8)}}
    selection = choose(scores, "accuracy", (1,))
    assert selection["choice"]["step"] == 300
    assert "highest" in selection["reason"]
    assert "1 of the others overlaps" in selection["reason"]


def test_of_equals_the_longest_trained_wins_whatever_the_order() -> None:
    scores = {candidate(step, ema): {"1": number(1.0)} for step in (600, 300) for ema in (0.05, 0.1)}
    for order in (list(scores), list(scores)[::-1]):
        assert (
            choose({c: scores[c] for c in order}, "frechet", (1,))["choice"] == candidate(600, 0.1)._asdict()
        )


def test_one_candidate_is_chosen_and_none_is_refused() -> None:
    assert "the only one" in choose({candidate(1): {"1": number(1.0)}}, "frechet", (1,))["reason"]
    with pytest.raises(InputError, match="no candidate"):
        choose({}, "frechet", (1,))


def test_combined_interval_is_no_narrower_than_its_parts_on_average() -> None:
    whole = combine([number(1.0, 0.1), number(3.0, 0.5)])
    assert whole == {"value": 2.0, "low": pytest.approx(1.7), "high": pytest.approx(2.3), "n": 400}
