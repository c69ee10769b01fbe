"""Samples that are not finite are counted over a window and never repaired; norms are held to their own past."""

from __future__ import annotations

import json

from loops import QUIET

from rcm_core.monitoring.early_stopping import ProbeResult
from rcm_core.monitoring.health import (
    FEWEST,
    LADDER,
    PERSISTENT,
    WINDOW,
    Health,
    NonFinite,
    Spikes,
    next_rung,
)


def test_what_is_counted_is_the_window() -> None:
    health = NonFinite(limit=0.1, window=4)
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
    health = NonFinite(limit=0.25, window=4)
    health.record(4, 4)
    assert not health.exceeded
    health.record(1, 4)
    assert health.exceeded


def test_no_sample_may_be_lost_when_none_is_allowed() -> None:
    health = NonFinite(limit=0.0)
    health.record(0, 64)
    assert not health.exceeded
    health.record(1, 64)
    assert health.exceeded


def test_the_sentence_says_what_happened_and_what_to_do() -> None:
    health = NonFinite(limit=0.01)
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


def spiked(spikes: Spikes, values: list[float]) -> list[int]:
    return [i for i, value in enumerate(values) if spikes.record(value)]


def test_a_spike_is_measured_by_the_running_median() -> None:
    calm = [1.0 + 0.01 * (i % 7) for i in range(60)]
    calm[40] = 12.0
    calm[50] = 9.0
    spikes = Spikes(10.0)
    assert spiked(spikes, calm) == [40]
    assert spikes.total == 1
    assert not spikes.persistent


def test_the_first_values_are_compared_with_nothing() -> None:
    """A median of few values is meaningless, and training begins with a warm-up."""
    assert spiked(Spikes(10.0), [1.0] * (FEWEST - 1) + [100.0]) == []
    assert spiked(Spikes(10.0), [1.0] * FEWEST + [100.0]) == [FEWEST]


def test_a_level_that_has_changed_for_good_is_no_spike_for_ever() -> None:
    found = spiked(Spikes(10.0), [1.0] * WINDOW + [100.0] * WINDOW)
    assert found == list(range(WINDOW, WINDOW + WINDOW // 2))


def test_spikes_that_come_back_are_persistent_and_old_ones_forgotten() -> None:
    spikes = Spikes(10.0)
    spiked(spikes, [50.0 if i >= FEWEST and i % 5 == 0 else 1.0 for i in range(FEWEST + 5 * PERSISTENT)])
    assert spikes.persistent
    spiked(spikes, [1.0] * WINDOW)
    assert not spikes.persistent
    assert spikes.total == PERSISTENT


def test_without_a_factor_nothing_spikes() -> None:
    assert spiked(Spikes(None), [1.0] * 50 + [1e9] * 20) == []


def test_health_goes_through_a_checkpoint_unchanged() -> None:
    limits = QUIET.model_copy(update={"spike": 5.0, "patience": 1})
    health, resumed = Health(0.01, limits), Health(0.01, limits)
    for step in range(130):
        health.count(step, step % 3 == 0, 8)
        health.watch({"gradient_norm": 1.0 + 99.0 * (step % 40 == 39), "tangent_norm": 1 / 3})
    health.step_down(50, "exact", "semi")
    health.count(131, 1, 8)
    for step in (0, 60, 120):
        health.read(ProbeResult.of(step, [0.1, 1 / 7, float("nan"), 0.0]), last=False)
    assert health.verdict is not None
    resumed.restore(json.loads(json.dumps(health.state(), allow_nan=False)))
    assert resumed == health
    assert (resumed.nonfinite, resumed.spikes) == (health.nonfinite, health.spikes)
    assert resumed.facts() == health.facts()
    assert health.facts()["spikes"] == {"gradient_norm": 3, "tangent_norm": 0}
    assert health.facts()["nonfinite"] == 45
