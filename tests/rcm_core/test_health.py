"""Samples that are not finite are counted over a window and never repaired."""

from __future__ import annotations

from rcm_core.health import LADDER, Health, next_rung


def test_what_is_counted_is_the_window() -> None:
    health = Health(limit=0.1, window=4)
    assert not health.exceeded
    for nonfinite in (0, 0, 8, 0):
        health.record(nonfinite, 10)
    assert (health.nonfinite, health.allowed) == (8, 4)
    assert health.exceeded
    for _ in range(3):
        health.record(0, 10)
    assert health.nonfinite == 0  # the bad step has left the window
    assert len(health.counts) == 4


def test_exactly_the_limit_is_allowed_from_the_first_step() -> None:
    health = Health(limit=0.25, window=4)
    health.record(4, 4)
    assert not health.exceeded
    health.record(1, 4)
    assert health.exceeded


def test_no_sample_may_be_lost_when_none_is_allowed() -> None:
    health = Health(limit=0.0)
    health.record(0, 64)
    assert not health.exceeded
    health.record(1, 64)
    assert health.exceeded


def test_the_sentence_says_what_happened_and_what_to_do() -> None:
    health = Health(limit=0.01)
    health.record(70, 60)
    said = health.sentence(17)
    assert said.startswith("step 17: 70 samples of the last 1 steps are not finite")
    assert "train.max_nonfinite = 0.01 allows 60" in said
    assert "train.tangent" in said


def test_the_ladder_goes_down_to_its_end() -> None:
    rung: str | None = "exact"
    seen = []
    while rung is not None:
        seen.append(rung)
        rung = next_rung(rung)
    assert tuple(seen) == LADDER
