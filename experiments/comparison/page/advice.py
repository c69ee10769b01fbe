"""Advice on which method to use, derived from the tables by the rules stated on the page."""

from __future__ import annotations

from experiments.comparison.page.claims import ACCURACY, gain
from experiments.comparison.page.results import Group, Results
from experiments.comparison.page.tables import BUDGET_WORDS, cell, format_measured, percent
from experiments.comparison.plan import UPDATES
from rcm_core.evaluation.metric import metric_of, shown_metrics
from rcm_core.units import MIB

RULE = (
    "A method counts among the best by a metric if no other preset is better with 95 % confidence, over the mean of all"
    " step counts. Everywhere means on every teacher and at every budget."
)
FIRST = "frechet_teacher"
"""First metric of the advice."""


def presets(group: Group) -> list[str]:
    """Return the shipped methods, without the ablations."""
    return [name for name, runs in group.runs.items() if not runs[0]["words"]]


def best(group: Group, metric: str) -> str:
    """Return the preset with the best mean of ``metric``."""
    sign = metric_of(metric).sign
    return max(presets(group), key=lambda name: sign * group.interval(name, metric).value)


def among_best(group: Group, metric: str) -> list[str]:
    """Return the presets that no other preset beats with 95 % confidence."""
    names = presets(group)
    return [n for n in names if not any(gain(group, m, n, metric).low > 0 for m in names if m != n)]


def recommend(results: Results) -> list[str]:
    """Return the presets among the best by the distance to the teacher and by accuracy in every group."""
    good = [set(among_best(g, FIRST)) & set(among_best(g, g.accuracy)) for g in results.groups]
    return [name for name in presets(results.groups[0]) if all(name in names for names in good)]


def advice(results: Results) -> str:
    """Return Markdown: the recommendation, and the best methods by metric, teacher and budget."""
    if not results.groups:
        return "Nothing has been run yet: `make compare`."
    names = recommend(results)
    head = (
        f"Among the best by Frechet distance to the teacher and by accuracy everywhere: {_list_names(names)}."
        if names
        else "No method is among the best by both Frechet distance to the teacher and accuracy everywhere. The list has"
        " the best ones for each teacher and budget."
    )
    return "\n".join([head, RULE, "", *(line for group in results.groups for line in _lines(group))])


def _lines(group: Group) -> list[str]:
    lines = [f"- `{group.teacher}`, {BUDGET_WORDS[group.budget]}:"]
    advising = [metric for metric in shown_metrics("advice") if metric.name in group.metrics]
    for metric in sorted(advising, key=lambda metric: metric.name != FIRST):
        name = group.accuracy if metric.name == ACCURACY else metric.name
        first = best(group, name)
        ties = [n for n in among_best(group, name) if n != first]
        unit = " %" if percent(name) else ""
        line = f"  - {metric.superlative} `{first}` ({cell(group.interval(first, name), name)}{unit})"
        lines.append(
            line + (f"; not told apart from it: {_list_names(ties)}" if ties else "; it beats all others")
        )
    small = min(presets(group), key=lambda n: group.measure(n, "memory_bytes").value)
    lines.append(
        f"  - least memory `{small}` ({format_measured(group.measure(small, 'memory_bytes'), 0, MIB)} MiB)"
    )
    if group.budget == UPDATES:
        in_turn = [name for name in presets(group) if name in group.costs]
        timed = {n: seconds for n in in_turn or presets(group) if (seconds := group.seconds(n)) is not None}
        if timed:
            fast = min(timed, key=lambda n: timed[n])
            lines.append(f"  - quickest to train `{fast}` ({timed[fast]:.0f} s)")
    return lines


def _list_names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
