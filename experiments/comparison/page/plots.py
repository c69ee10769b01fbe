"""Plots of the page. The same JSON gives the same bytes."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.comparison.page.results import Group
from rcm_core.storage.files import atomic

COLOURS = ("#c44e52", "#dd8452", "#4c72b0", "#55a868", "#8172b3")
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


def quality_plot(group: Group, place: Path) -> None:
    """Plot the distance to real images at each step count (left), and distance against diversity (right)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.32 * len(group.runs) + 1.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        _bars(left, group)
        _scatter(right, group)
        _save(figure, place)


def _bars(axes: Axes, group: Group) -> None:
    names = list(group.runs)[::-1]
    for index, steps in enumerate(group.steps):
        offset = 0.22 * (index - (len(group.steps) - 1) / 2)
        for row, name in enumerate(names):
            found = group.interval(name, "frechet", steps)
            axes.plot([found.low, found.high], [row - offset] * 2, color=COLOURS[index], linewidth=1.2)
            label = f"{steps} step{'s' if steps > 1 else ''}" if row == 0 else None
            axes.plot([found.value], [row - offset], "o", color=COLOURS[index], markersize=3.5, label=label)
    teacher = group.reference["rows"]["teacher"]["frechet"]["value"]
    axes.axvline(teacher, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("Frechet distance to real images, 95 %; dotted: the teacher")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(group.steps))


def _scatter(axes: Axes, group: Group) -> None:
    for name, colour in zip(group.runs, cycle(mpl.colormaps["tab20"].colors)):  # type: ignore[attr-defined]
        x, y = group.interval(name, "frechet"), group.interval(name, "diversity")
        axes.errorbar(
            x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]],
            yerr=[[y.value - y.low], [y.high - y.value]], fmt="o", color=colour, markersize=3, linewidth=0.6,
        )  # fmt: skip
        axes.annotate(
            name, (x.value, y.value), xytext=(3, 3), textcoords="offset points", fontsize=7, color=colour
        )
    teacher = group.reference["rows"]["teacher"]
    axes.plot(teacher["frechet"]["value"], teacher["diversity"]["value"], "*", color="grey", markersize=9)
    axes.set_xlabel("Frechet distance, mean over step counts (star: the teacher)")
    axes.set_ylabel("diversity")


def warm_plot(study: dict[str, Any], place: Path) -> None:
    """Plot the validation score over student updates, cold and warm, for every seed."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.subplots()
        for index, seed in enumerate(study["seeds"]):
            curves = [("cold", seed["cold"], "-"), *(("warm", w, "--") for w in seed["warm"])]
            for number, (words, run, line) in enumerate(curves):
                points = _best(run["curve"])
                label = f"{words}, seed {seed['seed']}" if number < 2 else None
                axes.plot(*zip(*points), line, marker=".", color=COLOURS[index % 5], linewidth=1, label=label)
        axes.set_xlabel("student updates")
        axes.set_ylabel(f"{study['metric'].replace('_', ' ')}, validation")
        axes.legend(frameon=False)
        _save(figure, place)


def _best(curve: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return the score of the better EMA length by number of updates."""
    found: dict[int, float] = {}
    for c in curve:
        found[c["updates"]] = min(c["score"]["value"], found.get(c["updates"], float("inf")))
    return sorted(found.items())


def _save(figure: Figure, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic(place) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
