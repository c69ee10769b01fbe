"""95 % intervals over seeds and samples.

A metric of one run varies for two reasons: the training's seed, and the finite sample on which it is measured. All runs
are measured with the same prompts and the same noise, so the second error may be common to all seeds, and averaging
over seeds need not reduce it. With values v_s of S seeds, their variance s^2, and w the mean variance of one value by
resampling its samples (from its own interval), the interval of the mean is

    mean(v) +- t sqrt(s^2 / S + w)

as if all seeds had the same sampling error. This is an upper bound, because s^2 / S already contains the independent
part. t is Student's quantile at the degrees of freedom of Welch and Satterthwaite, where s^2 / S has S - 1 and w
infinitely many. The difference of two methods adds the terms of both. This ignores that equal noise correlates the
errors, so it is also an upper bound. A single seed has the interval of its samples. Coverage is tested on synthetic
data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import NamedTuple

from scipy.stats import t as student_t

from rcm_core.evaluation.bootstrap import Z95, Estimate
from rcm_core.evaluation.metric import metric_of
from rcm_core.evaluation.selection import combine


class Interval(NamedTuple):
    """A mean over seeds with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int

    def within(self, low: float, high: float) -> Interval:
        """Clip the interval to the possible values [low, high]."""
        return self._replace(low=max(low, self.low), high=min(high, self.high))


class Term(NamedTuple):
    """Component of a variance with its degrees of freedom."""

    variance: float
    freedom: float


def terms(runs: Sequence[Estimate]) -> list[Term]:
    """Return the variance terms of the mean of one metric over ``runs`` of different seeds."""
    sampling = fmean(_spread(run) ** 2 for run in runs)
    found = [Term(sampling, math.inf)]
    if len(runs) > 1:
        found.append(Term(variance(run["value"] for run in runs) / len(runs), len(runs) - 1))
    return found


def mean_over_seeds(runs: Sequence[Estimate]) -> Interval:
    """Return the mean and its interval."""
    value, half = fmean(run["value"] for run in runs), half_width(terms(runs))
    return Interval(value, value - half, value + half, len(runs))


def difference(ours: Sequence[Estimate], theirs: Sequence[Estimate]) -> Interval:
    """Return the difference ``ours`` minus ``theirs`` of means over seeds."""
    value = fmean(run["value"] for run in ours) - fmean(run["value"] for run in theirs)
    half = half_width([*terms(ours), *terms(theirs)])
    return Interval(value, value - half, value + half, min(len(ours), len(theirs)))


def pair_gains(gains: Sequence[float]) -> Interval:
    """Return the mean of the gains per seed on the same samples, so that sampling errors cancel.

    The interval of a single seed is infinite.
    """
    value = fmean(gains)
    half = half_width([Term(variance(gains) / len(gains), len(gains) - 1)]) if len(gains) > 1 else math.inf
    return Interval(value, value - half, value + half, len(gains))


def half_width(parts: Sequence[Term]) -> float:
    """Return the half width of the 95 % interval of a mean with these variance terms."""
    total = sum(part.variance for part in parts)
    if not total:
        return 0.0
    freedom = total**2 / max(sum(p.variance**2 / p.freedom for p in parts), total**2 * 1e-9)
    return float(student_t.ppf(0.975, freedom)) * math.sqrt(total)


def over_steps(rows: dict[str, dict[str, Estimate]], metric: str) -> Estimate:
    """Return one run's mean of ``metric`` over its step counts, with the widest possible interval."""
    return combine([row[metric] for _, row in sorted(rows.items())])


def clip_interval(interval: Interval, metric: str) -> Interval:
    """Return ``interval`` clipped to the possible values of ``metric``."""
    return interval.within(*metric_of(metric).bounds)


def _spread(run: Estimate) -> float:
    """Return the standard error by resampling, from the longer side of an interval that was clipped."""
    return max(run["high"] - run["value"], run["value"] - run["low"]) / Z95
