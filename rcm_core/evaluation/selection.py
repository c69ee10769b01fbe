"""Selection of the student among the candidates of a training: steps x EMA lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.metric import metric_of


class Candidate(NamedTuple):
    """A student that selection can choose."""

    name: str
    """Name of its folder below the candidates of the run."""
    step: int
    """Number of training iterations."""
    ema: float
    """Relative length of its EMA profile."""


def choose(
    scores: Mapping[Candidate, Mapping[str, Estimate]], metric: str, steps: Sequence[int]
) -> dict[str, Any]:
    """Return every candidate's score (the mean over ``steps``), the choice and the reason in words.

    ``scores[candidate][str(step)]`` is the candidate's ``metric`` on the validation split at that step
    count. The best mean wins; ties go to the longest training, then to the longest EMA. InputError
    without candidates.
    """
    if not scores:
        raise InputError(
            "training wrote no candidates to choose from; lower train.candidate_every to at most"
            " train.iterations and run `dvc repro train`"
        )
    means = {candidate: combine(list(per_step.values())) for candidate, per_step in scores.items()}
    sign = -metric_of(metric).sign
    ranked = sorted(means, key=lambda c: (sign * means[c]["value"], -c.step, -c.ema, c.name))
    return {
        "choice": ranked[0]._asdict(),
        "reason": _reason(ranked, means, metric, steps),
        "metric": metric,
        "steps": list(steps),
        "candidates": [
            {**c._asdict(), "scores": dict(scores[c]), "score": means[c]}
            for c in sorted(scores, key=lambda c: (c.step, c.ema, c.name))
        ],
    }


def combine(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over step counts, with the interval for fully correlated errors, the widest possible.

    Step counts share seeds and network, so their errors are dependent to an unknown degree.
    """
    many = len(estimates)
    return {
        "value": sum(e["value"] for e in estimates) / many,
        "low": sum(e["low"] for e in estimates) / many,
        "high": sum(e["high"] for e in estimates) / many,
        "n": min(e["n"] for e in estimates),
    }


def _reason(
    ranked: Sequence[Candidate], means: Mapping[Candidate, Estimate], metric: str, steps: Sequence[int]
) -> str:
    best = means[ranked[0]]
    direction = "highest" if metric_of(metric).higher_is_better else "lowest"
    over = f"over {_list_steps(steps)} step{'s' if list(steps) != [1] else ''}"
    head = (
        f"{ranked[0].name} has the {direction} mean {metric} {over} on the validation split: {_words(best)},"
        f" of {len(ranked)} candidate{'s' if len(ranked) > 1 else ''}"
    )
    if len(ranked) == 1:
        return f"{head}, the only one."
    rival = means[ranked[1]]
    near = [c for c in ranked[1:] if means[c]["low"] <= best["high"] and means[c]["high"] >= best["low"]]
    many = (
        f"the interval of {len(near)} of the others overlaps with its own"
        if near
        else "no other's interval reaches it"
    )
    return f"{head}; the next, {ranked[1].name}, has {_words(rival)}, and {many}."


def _words(e: Estimate) -> str:
    return f"{e['value']:.3f} (95 % interval {e['low']:.3f} to {e['high']:.3f})"


def _list_steps(steps: Sequence[int]) -> str:
    words = [str(step) for step in steps]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
