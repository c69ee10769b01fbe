"""Intervals over seeds and samples have their nominal coverage on synthetic data."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.comparison.page.intervals import difference, mean_over_seeds
from rcm_core.evaluation.bootstrap import Z95, Estimate

TRIALS = 3000


def estimate(value: float, sigma: float) -> Estimate:
    return {"value": value, "low": value - Z95 * sigma, "high": value + Z95 * sigma, "n": 100}


def runs(rng: np.random.Generator, seeds: int, tau: float, sigma: float, common: float) -> list[Estimate]:
    """Values around 0: training seeds scatter by ``tau``, samples by ``sigma``, a share ``common`` of whose variance
    all seeds have in common.
    """
    together = rng.normal() * sigma * common**0.5
    own = rng.normal(size=seeds) * sigma * (1 - common) ** 0.5
    return [estimate(float(v), sigma) for v in rng.normal(size=seeds) * tau + own + together]


# 3,000 trials have a standard error of 0.004 at 0.95. Where both errors matter the quantile is chosen by variances
# that are themselves estimated from three values, which costs up to 0.02; where seeds do not matter and samples are
# independent the bound counts them once and a third, hence up to 0.98 and more.
@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("tau", "sigma"), [(1.0, 0.0), (1.0, 0.3), (1.0, 1.0), (0.3, 1.0), (0.0, 1.0)])
def test_intervals_of_three_seeds_cover(tau: float, sigma: float, common: float) -> None:
    rng = np.random.default_rng(1)
    found = [mean_over_seeds(runs(rng, 3, tau, sigma, common)) for _ in range(TRIALS)]
    covered = np.mean([i.low <= 0 <= i.high for i in found])
    assert covered >= 0.925


@pytest.mark.parametrize("common", [0.0, 1.0])
@pytest.mark.parametrize(("tau", "sigma"), [(1.0, 0.3), (0.3, 1.0)])
def test_intervals_of_differences_cover(tau: float, sigma: float, common: float) -> None:
    rng = np.random.default_rng(2)
    pairs = [(runs(rng, 3, tau, sigma, common), runs(rng, 3, 2 * tau, sigma, common)) for _ in range(TRIALS)]
    found = [difference(a, b) for a, b in pairs]
    assert np.mean([i.low <= 0 <= i.high for i in found]) >= 0.925


def test_exact_where_the_form_is_exact() -> None:
    """Seeds alone: Student's interval; common sampling errors alone: the samples' own."""
    rng = np.random.default_rng(3)
    seeds = [mean_over_seeds(runs(rng, 3, 1.0, 0.0, 0.0)) for _ in range(TRIALS)]
    assert np.mean([i.low <= 0 <= i.high for i in seeds]) == pytest.approx(0.95, abs=0.012)
    samples = [mean_over_seeds(runs(rng, 3, 0.0, 1.0, 1.0)) for _ in range(TRIALS)]
    assert np.mean([i.low <= 0 <= i.high for i in samples]) == pytest.approx(0.95, abs=0.012)


def test_one_seed_has_the_interval_of_its_samples() -> None:
    (only,) = [estimate(2.0, 0.5)]
    found = mean_over_seeds([only])
    assert (found.value, found.seeds) == (2.0, 1)
    # Student's quantile of a thousand million degrees of freedom
    assert (found.low, found.high) == pytest.approx((only["low"], only["high"]), abs=1e-6)


def test_an_interval_that_was_cut_counts_by_its_longer_side() -> None:
    cut: Estimate = {"value": 1.0, "low": 0.9, "high": 1.0, "n": 100}
    found = mean_over_seeds([cut])
    assert found.value - found.low == pytest.approx(0.1, abs=1e-6)


def test_certain_numbers_have_no_width() -> None:
    found = mean_over_seeds([estimate(3.0, 0.0)] * 3)
    assert (found.low, found.value, found.high) == (3.0, 3.0, 3.0)


def test_more_seeds_and_a_difference_are_what_they_say() -> None:
    rng = np.random.default_rng(4)
    few, many = runs(rng, 3, 1.0, 0.1, 0.0), runs(rng, 30, 1.0, 0.1, 0.0)
    width = {len(r): mean_over_seeds(r).high - mean_over_seeds(r).low for r in (few, many)}
    assert width[30] < width[3]
    shifted = [estimate(r["value"] + 10, 0.1) for r in few]
    found = difference(shifted, few)
    assert found.value == pytest.approx(10)
    assert found.low < 10 < found.high
