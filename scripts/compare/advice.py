"""Which method to use, derived from the tables by rules that the page states."""

from __future__ import annotations

from scripts.compare.claims import gain
from scripts.compare.results import LOWER_IS_BETTER, Group, Results
from scripts.compare.tables import BUDGET_WORDS, MIB, cell, measured

RULE = (
    "A method counts among the best by a number if no other is better by it with 95 % confidence, over the mean of all"
    " step counts."
)


def best(group: Group, metric: str) -> str:
    """The method with the best mean of ``metric``."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return min(group.runs, key=lambda name: sign * group.interval(name, metric).value)


def among_best(group: Group, metric: str) -> list[str]:
    """The best method, and those that it does not beat with 95 % confidence."""
    first = best(group, metric)
    return [n for n in group.runs if n == first or gain(group, first, n, metric).low <= 0]


def recommended(results: Results) -> list[str]:
    """Among the best by Frechet distance and by accuracy on every teacher and budget; presets alone, no ablations."""
    candidates: dict[str, bool] = {}
    for group in results.groups:
        good = set(among_best(group, "frechet")) & set(among_best(group, group.accuracy))
        for name in (n for n, runs in group.runs.items() if not runs[0]["words"]):
            candidates[name] = candidates.get(name, True) and name in good
    return [name for name, holds in candidates.items() if holds]


def advice(results: Results) -> str:
    """Markdown: the recommendation, and per teacher and budget what is best by what."""
    if not results.groups:
        return "Nothing has been run yet: `make compare`."
    names = recommended(results)
    head = (
        f"Among the best by Frechet distance and by accuracy everywhere: {_listed(names)}."
        if names
        else "No method is among the best by both Frechet distance and accuracy everywhere; see below which wins where."
    )
    return "\n".join([head, RULE, "", *(_line(group) for group in results.groups)])


def _line(group: Group) -> str:
    quality = best(group, "frechet")
    ties = [n for n in among_best(group, "frechet") if n != quality]
    diverse = best(group, "diversity")
    in_turn = [name for name in group.runs if name in group.costs]
    fast = min(in_turn or group.runs, key=group.seconds)
    small = min(group.runs, key=lambda n: group.measured(n, "memory_bytes").value)
    parts = [
        f"lowest Frechet distance `{quality}` ({cell(group.interval(quality, 'frechet'), 'frechet')}"
        + (f"; not told apart from it: {_listed(ties)})" if ties else "; it beats all others)"),
        f"highest accuracy `{best(group, group.accuracy)}`",
        f"most diverse `{diverse}` ({cell(group.interval(diverse, 'diversity'), 'diversity')})",
        f"quickest to train `{fast}` ({group.seconds(fast):.0f} s)",
        f"least memory `{small}` ({measured(group.measured(small, 'memory_bytes'), 0, MIB)} MiB)",
    ]
    return f"- `{group.teacher}`, {BUDGET_WORDS[group.budget]}: {'; '.join(parts)}."


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
