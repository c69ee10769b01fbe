"""95 % intervals over seeds and samples.

A number of one run scatters for two reasons: the training's seed, and the finite sample that it was measured on. All
runs are measured with the same prompts and the same noise, so the second error may be common to all seeds, and
averaging over seeds need not reduce it. With values v_s of S seeds, their variance s^2, and w the mean variance of one
number by resampling its samples (from its own interval), the interval of the mean is

    mean(v) +- t sqrt(s^2 / S + w)

as if the sampling errors of all seeds were one: an upper bound, for s^2 / S holds their independent part already. t is
Student's quantile at the degrees of freedom of Welch and Satterthwaite, where s^2 / S has S - 1 and w infinitely many.
The difference of two methods adds the terms of both, which ignores that equal noise makes the errors alike: an upper
bound again. One seed alone has the interval of its samples. Coverage is tested on synthetic data.
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
        """Cut to what the number can be."""
        return self._replace(low=max(low, self.low), high=min(high, self.high))


class Term(NamedTuple):
    """A part of a variance and its degrees of freedom."""

    variance: float
    freedom: float


def terms(runs: Sequence[Estimate]) -> list[Term]:
    """Of the mean of one number over ``runs`` of different seeds."""
    sampling = fmean(_spread(run) ** 2 for run in runs)
    found = [Term(sampling, math.inf)]
    if len(runs) > 1:
        found.append(Term(variance(run["value"] for run in runs) / len(runs), len(runs) - 1))
    return found


def mean_over_seeds(runs: Sequence[Estimate]) -> Interval:
    """The mean and its interval."""
    value, half = fmean(run["value"] for run in runs), half_width(terms(runs))
    return Interval(value, value - half, value + half, len(runs))


def difference(ours: Sequence[Estimate], theirs: Sequence[Estimate]) -> Interval:
    """``ours`` minus ``theirs``, of means over seeds."""
    value = fmean(run["value"] for run in ours) - fmean(run["value"] for run in theirs)
    half = half_width([*terms(ours), *terms(theirs)])
    return Interval(value, value - half, value + half, min(len(ours), len(theirs)))


def pair_gains(gains: Sequence[float]) -> Interval:
    """The mean of what was gained seed by seed on the same samples, whose sampling errors go out; a single seed has no
    interval (it is infinite).
    """
    value = fmean(gains)
    half = half_width([Term(variance(gains) / len(gains), len(gains) - 1)]) if len(gains) > 1 else math.inf
    return Interval(value, value - half, value + half, len(gains))


def half_width(parts: Sequence[Term]) -> float:
    """Of the 95 % interval of a mean with these variances."""
    total = sum(part.variance for part in parts)
    if not total:
        return 0.0
    freedom = total**2 / max(sum(p.variance**2 / p.freedom for p in parts), total**2 * 1e-9)
    return float(student_t.ppf(0.975, freedom)) * math.sqrt(total)


def over_steps(rows: dict[str, dict[str, Estimate]], metric: str) -> Estimate:
    """One run's mean of ``metric`` over its step counts, with the widest interval there can be."""
    return combine([row[metric] for _, row in sorted(rows.items())])


def clip_interval(interval: Interval, metric: str) -> Interval:
    """``interval`` cut to the values that ``metric`` can have."""
    return interval.within(*metric_of(metric).bounds)


def _spread(run: Estimate) -> float:
    """Standard error by resampling; the longer side of an interval that was cut at a bound."""
    return max(run["high"] - run["value"], run["value"] - run["low"]) / Z95
