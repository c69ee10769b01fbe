"""The choice of a student among the candidates that training left: checkpoints x EMA lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.metric import metric_of


class Candidate(NamedTuple):
    """A student that may be chosen."""

    name: str
    """Folder of its weights, below the candidates of the run."""
    step: int
    """Training iterations behind it."""
    ema: float
    """Relative length of its EMA profile."""


def choose(
    scores: Mapping[Candidate, Mapping[str, Estimate]], metric: str, steps: Sequence[int]
) -> dict[str, Any]:
    """The selection: every candidate's score (the mean over ``steps``), the choice and the reason in words.

    ``scores[candidate][str(step)]`` is the candidate's ``metric`` on the validation split at that step
    count. The best mean wins; of equals the one trained longest, then the one averaged longest. InputError
    if there is no candidate.
    """
    if not scores:
        raise InputError(
            "no candidate to choose from: training left none; lower train.candidate_every to at most"
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
    """Mean over step counts; the interval is the widest there can be, as if all rose and fell together.

    Step counts share seeds and network, so their errors are dependent and by how much is not known.
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
