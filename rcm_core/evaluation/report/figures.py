"""Charts as inline SVG with the page's colours, in light and dark mode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from rcm_core.evaluation.metric import metric_of, shown_metrics
from rcm_core.evaluation.report.finished_run import Curve, Run, Sampler
from rcm_core.evaluation.report.labels import label_points, wrap_titles

INK, MUTED, LINE = "#010101", "#020202", "#030303"
TEACHER, STUDENT, RAW = "#040404", "#050505", "#060606"
PAGE_COLOURS = {
    INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)",
    TEACHER: "var(--teacher)", STUDENT: "var(--student)", RAW: "var(--raw)",
}  # fmt: skip
SERIES = (STUDENT, TEACHER, RAW, MUTED)
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "rcm-distill", "font.size": 9.5, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.7, "axes.axisbelow": True,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 0, "ytick.major.size": 0,
    "xtick.minor.size": 0, "ytick.minor.size": 0, "legend.frameon": False, "lines.linewidth": 1.8,
}  # fmt: skip
CURVES = {
    "loss": ("Student loss", False),
    "tangent_norm": ("Tangent norm", True),
    "fake_loss": ("Fake-score loss", True),
    "dmd_gradient": ("Distribution-matching gradient", True),
    "off_loss": ("Loss off the route", True),
    "adversarial_loss": ("Adversarial loss", False),
    "critic_loss": ("Discriminator loss", False),
    "gradient_norm": ("Gradient norm", True),
    "nonfinite": ("Samples left out as not finite", False),
    "spikes": ("Spikes of a norm", False),
    "probe_score": ("Energy distance to the teacher", False),
    "brightness": ("Brightness beside the teacher's", False),
    "contrast": ("Contrast beside the teacher's", False),
}
PROBES = ("probe_score", "brightness", "contrast")


def cost_and_quality(run: Run) -> str:
    """Plot the Frechet distance over the seconds per sample, both with intervals."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        points = []
        for sampler in run.samplers:
            cost, quality = (run.metrics[sampler.key][key] for key in ("seconds_per_sample", run.distance))
            x, y = cost["value"] * 1e3, quality["value"]
            kind, steps = sampler.name.split(", ")
            axes.errorbar(
                x, y, xerr=_bars([cost], 1e3), yerr=_bars([quality]), fmt="o", markersize=8,
                color=_colour(sampler), elinewidth=1.6, label=kind,
            )  # fmt: skip
            points.append((steps, x, quality["low"], quality["high"]))
        axes.set(xscale="log", xlabel="milliseconds per sample", ylabel="Fréchet distance")
        axes.margins(x=0.08, y=0.15)
        axes.set_ylim(bottom=0)
        _plain_numbers(axes.xaxis)
        _legend_above(figure, axes)
        label_points(axes, points, INK, 9)
        return _svg(figure)


def intervals(run: Run) -> str:
    """Plot every metric of every sampler with its interval."""
    with matplotlib.rc_context(STYLE):
        known = run.metrics["teacher"]
        metrics = [metric for metric in shown_metrics("results") if metric.name in known]
        shown = [(m.name, f"{m.chart.format(reference=run.reference)} {m.arrow}") for m in metrics]
        down = -(-len(shown) // 3)
        figure = Figure(figsize=(9.6, 2.2 * down), layout=_roomy())
        grid = figure.subplots(down, 3, sharey=True, squeeze=False)
        rows = range(len(run.samplers))[::-1]
        for axes, (key, title) in zip(grid.flat, shown):
            for y, sampler in zip(rows, run.samplers):
                estimate = run.metrics[sampler.key][key]
                axes.errorbar(
                    estimate["value"], y, xerr=_bars([estimate]), fmt="o", markersize=6,
                    color=_colour(sampler), elinewidth=2,
                )  # fmt: skip
            axes.axvline(
                run.metrics["teacher"][key]["value"], color=TEACHER, linewidth=1, linestyle=(0, (3, 3))
            )
            axes.set_title(title)
            axes.set_yticks(list(rows), [s.name for s in run.samplers])
            axes.grid(axis="y", visible=False)
            axes.margins(y=0.15)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        return _svg(figure)


def training(curves: dict[str, Curve]) -> str:
    """Plot all scalars that the training logged, such as loss and tangent norm, over iterations."""
    shown = [(name, *CURVES[name]) for name in CURVES if name in curves and any(v for _, v in curves[name])]
    if not shown:
        return '<p class="note">Training logged no curves.</p>'
    with matplotlib.rc_context(STYLE):
        columns = 2 if len(shown) in (2, 4) else min(3, len(shown))
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(9.6, 2.6 * rows), layout=_roomy())
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (name, title, logarithmic) in zip(grid.flat, shown):
            steps, values = zip(*curves[name])
            axes.plot(steps, values, color=STUDENT, marker="o" if name in PROBES else "", markersize=3.5)
            if name in PROBES:
                axes.axhline(0, color=TEACHER, linewidth=1, linestyle=(0, (3, 3)))
            if logarithmic and min(values) > 0:
                axes.set_yscale("log")
                _plain_numbers(axes.yaxis)
            axes.set_title(title)
            axes.set_xlabel("iteration")
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        return _svg(figure)


def candidates(selection: dict[str, Any]) -> str:
    """Plot the score of every candidate over training, per step count and as a mean, one line per EMA length."""
    lengths = sorted({c["ema"] for c in selection["candidates"]})
    panels = [("score", "Mean"), *((str(s), f"{s} step{'s' if s > 1 else ''}") for s in selection["steps"])]
    with matplotlib.rc_context(STYLE):
        across = min(4, len(panels))
        down = -(-len(panels) // across)
        figure = Figure(figsize=(9.6, 0.3 + 2.8 * down), layout=_roomy())
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes, (key, title) in zip(grid.flat, panels):
            for length, colour in zip(lengths, SERIES * len(lengths)):
                _candidate_line(axes, selection["candidates"], key, length, colour)
            _mark_choice(axes, selection, key)
            axes.set_title(title)
            axes.set_xlabel("iteration")
            axes.margins(x=0.1)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(metric_of(selection["metric"]).axis)
        _legend_above(figure, grid[0, 0])
        return _svg(figure)


def _candidate_line(
    axes: Axes, every: Sequence[dict[str, Any]], key: str, length: float, colour: str
) -> None:
    points = sorted((c["step"], i) for i, c in enumerate(every) if c["ema"] == length)
    estimates = [_estimate(every[i], key) for _, i in points]
    axes.errorbar(
        [step for step, _ in points], [e["value"] for e in estimates], yerr=_bars(estimates),
        color=colour, marker="o", markersize=4, elinewidth=1.2, label=f"EMA {length:g}",
    )  # fmt: skip


def _mark_choice(axes: Axes, selection: dict[str, Any], key: str) -> None:
    chosen = next(c for c in selection["candidates"] if c["name"] == selection["choice"]["name"])
    axes.plot(
        chosen["step"], _estimate(chosen, key)["value"], "o", markersize=13, markerfacecolor="none",
        markeredgecolor=INK, markeredgewidth=1.4, label="chosen", clip_on=False,
    )  # fmt: skip


def _estimate(candidate: dict[str, Any], key: str) -> dict[str, Any]:
    estimate: dict[str, Any] = candidate["score"] if key == "score" else candidate["scores"][key]
    return estimate


def _bars(estimates: Sequence[dict[str, Any]], unit: float = 1.0) -> list[list[float]]:
    below = [(e["value"] - e["low"]) * unit for e in estimates]
    return [below, [(e["high"] - e["value"]) * unit for e in estimates]]


def _roomy() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04, hspace=0.06)


def _plain_numbers(axis: XAxis | YAxis) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10 instead of powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_above(figure: Figure, axes: Axes) -> None:
    """Draw the legend of ``axes``, every name once, above the plot so that it covers no data."""
    handles, names = axes.get_legend_handles_labels()
    first = dict(zip(names[::-1], handles[::-1]))
    ordered = list(dict.fromkeys(names))
    handles = [first[name] for name in ordered]
    figure.legend(handles, ordered, loc="outside upper right", ncols=len(ordered), fontsize=9)


def _colour(sampler: Sampler) -> str:
    return STUDENT if sampler.student else TEACHER if sampler.key == "teacher" else RAW


def _svg(figure: Figure) -> str:
    """Render inline SVG without prologue, metadata and name spaces, which HTML does not need."""
    wrap_titles(figure)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    stream = StringIO()
    figure.savefig(
        stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"(font: [^;\"']*?px )[^;\"]*", r"\1system-ui, sans-serif", text)
    text = re.sub(
        r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1
    )
    for placeholder, colour in PAGE_COLOURS.items():
        text = text.replace(placeholder, colour)
    return text
