"""Verdict whether a warm start is as good as the cold start."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from experiments.comparison.page.warm_verdict import (
    NOT_REACHED,
    NOT_TOLD_APART,
    REACHED,
    judge_promise,
    lengths,
)


def test_a_warm_start_is_judged_by_what_trainings_end_with_over_all_seeds() -> None:
    def training(share: float, *scores: tuple[int, float]) -> dict[str, Any]:
        curve = [{"updates": u, "score": {"value": v}} for u, v in scores]
        return {"share": share, "updates": round(100 * share), "curve": curve}

    def study(metric: str, *ends: float) -> dict[str, Any]:
        cold = training(1.0, (50, 1.0), (100, 3.0), (100, 2.0))
        passing = training(0.1, (5, 0.5), (10, 4.0))
        seeds = [
            {"cold": cold, "warm": [passing, training(0.4, (20, 9.0), (40, e), (40, 5.0))]} for e in ends
        ]
        return {"metric": metric, "seeds": seeds}

    short, long = lengths(study("frechet_teacher", 1.9, 1.7))
    assert (short.updates, short.verdict) == (10, NOT_REACHED)
    assert (long.updates, long.verdict) == (40, REACHED)
    assert long.score == pytest.approx(1.8)
    # 2.0 - (1.9, 1.7): mean 0.2, standard error 0.1, Student's t of one degree of freedom 12.7
    assert tuple(long.gain) == pytest.approx((0.2, 0.2 - 1.2706, 0.2 + 1.2706, 2), abs=1e-4)
    assert judge_promise([short, long]) == REACHED
    near = lengths(study("frechet_teacher", 1.9, 2.2))
    assert near[1].verdict == NOT_TOLD_APART
    assert judge_promise(near) == NOT_REACHED
    assert lengths(study("frechet_teacher", 2.2, 2.2))[1].verdict == NOT_REACHED
    assert lengths(study("frechet_teacher", 2.2))[1].verdict == NOT_REACHED  # one seed has no interval
    assert judge_promise([dataclasses.replace(long, share=0.5)]) == NOT_REACHED
    # higher accuracy is better, also between the two EMA lengths
    assert [each.verdict for each in lengths(study("accuracy", 1.9))] == [REACHED, REACHED]
