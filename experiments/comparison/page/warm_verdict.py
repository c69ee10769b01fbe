"""Verdict whether a warm start is as good as the cold start, from the JSON of ``studies.warm_start`` alone."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from experiments.comparison.page.intervals import Interval, pair_gains
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.metric import metric_of

PROMISED = 0.4
"""Largest share of the cold start's student updates after which the warm start must be as good."""
REACHED, NOT_TOLD_APART, NOT_REACHED = "reached", "not told apart", "not reached"


@dataclass(frozen=True)
class Length:
    """Comparison of the warm trainings of one length with the cold ones, over all seeds."""

    share: float
    """Share of the cold training's student updates."""
    updates: int
    score: float
    """Mean score of the warm trainings."""
    gain: Interval
    """Gain over the cold start; positive is better."""

    @property
    def verdict(self) -> str:
        if self.gain.value >= 0:
            return REACHED
        return NOT_TOLD_APART if self.gain.seeds > 1 and self.gain.high >= 0 else NOT_REACHED


def end(training: dict[str, Any], metric: str) -> Estimate:
    """Return the score of the better EMA length at the end of a training.

    Earlier scores do not count, because the best of many noisy scores is good by chance.
    """
    best = max if metric_of(metric).higher_is_better else min
    last: list[Estimate] = [c["score"] for c in training["curve"] if c["updates"] == training["updates"]]
    return best(last, key=lambda score: score["value"])


def lengths(study: dict[str, Any]) -> list[Length]:
    """Return the lengths of a study, shortest first."""
    metric, seeds = study["metric"], study["seeds"]
    sign = metric_of(metric).sign
    found = []
    for each in zip(*(seed["warm"] for seed in seeds), strict=True):
        scores = [end(warm, metric)["value"] for warm in each]
        colds = [end(seed["cold"], metric)["value"] for seed in seeds]
        gains = [sign * (warm - cold) for warm, cold in zip(scores, colds, strict=True)]
        found.append(Length(each[0]["share"], each[0]["updates"], fmean(scores), pair_gains(gains)))
    return found


def judge_promise(found: list[Length]) -> str:
    """Return the promise's verdict: a length that it allows must be as good; being not told apart is not enough."""
    reached = any(length.verdict == REACHED for length in found if length.share <= PROMISED)
    return REACHED if reached else NOT_REACHED
