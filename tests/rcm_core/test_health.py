"""Samples that are not finite are counted over a window and never repaired."""

from __future__ import annotations

import pytest

from rcm_core.health import LADDER, Health, next_rung


def test_the_share_is_of_the_window() -> None:
    health = Health(limit=0.1, window=4)
    assert health.share == 0
    assert not health.exceeded
    for nonfinite in (0, 0, 8, 0):
        health.record(nonfinite, 10)
    assert health.share == pytest.approx(0.2)
    assert health.exceeded
    for _ in range(3):
        health.record(0, 10)
    assert health.share == 0  # the bad step has left the window
    assert len(health.counts) == 4


def test_exactly_the_limit_is_allowed() -> None:
    health = Health(limit=0.25)
    health.record(1, 4)
    assert not health.exceeded
    health.record(2, 4)
    assert health.exceeded


def test_no_sample_may_be_lost_when_none_is_allowed() -> None:
    health = Health(limit=0.0)
    health.record(0, 64)
    assert not health.exceeded
    health.record(1, 64)
    assert health.exceeded


def test_the_sentence_says_what_happened_and_what_to_do() -> None:
    health = Health(limit=0.01)
    health.record(3, 60)
    said = health.sentence(17)
    assert said.startswith("step 17: 5.0% of the samples of the last 1 steps are not finite")
    assert "train.max_nonfinite allows 1.0%" in said
    assert "train.tangent" in said


def test_the_ladder_goes_down_to_its_end() -> None:
    rung: str | None = "exact"
    seen = []
    while rung is not None:
        seen.append(rung)
        rung = next_rung(rung)
    assert tuple(seen) == LADDER
