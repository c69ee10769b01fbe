"""Intervals have their nominal coverage."""

from __future__ import annotations

import numpy as np
import pytest

from rcm_core.evaluation.bootstrap import Bootstrap, counts, estimate, exact, halves, mean, share
from rcm_core.evaluation.judges.base import one_thread
from rcm_core.evaluation.metrics.frechet import frechet, frechet_estimate

TRIALS = 150
# 150 trials at 0.95 fall below 0.89 once in a thousand times; the bootstrap itself may lack two points
AT_LEAST = 0.88


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_frechet_interval_covers_the_expected_score_of_gaussians(shift: float) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(400, 8))

    def draw() -> np.ndarray:
        return rng.normal(shift, 1, size=(200, 8))

    with one_thread():
        expected = np.mean([frechet(draw(), reference) for _ in range(400)])
        intervals = [frechet_estimate(draw(), reference, Bootstrap(100, i)) for i in range(TRIALS)]
    assert np.mean([e["low"] <= expected <= e["high"] for e in intervals]) >= AT_LEAST


def test_mean_interval_covers() -> None:
    rng = np.random.default_rng(1)
    intervals = [mean(rng.exponential(1, 100), Bootstrap(200, trial)) for trial in range(TRIALS)]
    assert np.mean([e["low"] <= 1 <= e["high"] for e in intervals]) >= AT_LEAST


def test_interval_brackets_the_value_even_if_the_replicates_are_biased() -> None:
    e = estimate(1.0, np.linspace(5, 6, 101), 10, (0, 10))
    assert e == {"value": 1.0, "low": pytest.approx(0.525), "high": pytest.approx(1.475), "n": 10}
    assert estimate(1.0, np.linspace(0, 10, 101), 10, (0.5, 2.0))["low"] == 0.5


@pytest.mark.parametrize("agree", [True, False])
def test_unanimous_flags_are_not_certain(agree: bool) -> None:
    flags = np.full(100, agree)
    e = share(flags, Bootstrap(50, 0), "flags")
    # the rule of three: 3/100 at one-sided 95 %, Wilson's two-sided is 0.037
    assert e["high"] - e["low"] == pytest.approx(0.037, abs=1e-3)
    assert e["value"] == float(agree)


def test_resamples_are_addressed() -> None:
    a, b = Bootstrap(7, 0), Bootstrap(7, 1)
    assert np.array_equal(counts(9, a, "x"), counts(9, a, "x"))
    assert not np.array_equal(counts(9, a, "x"), counts(9, b, "x"))
    assert not np.array_equal(counts(9, a, "x"), counts(9, a, "y"))
    assert (counts(9, a).sum(1) == 9).all()
    assert (halves(9, a).sum(1) == 4).all()


def test_a_count_is_exact() -> None:
    assert exact(100, 5) == {"value": 100, "low": 100, "high": 100, "n": 5}
