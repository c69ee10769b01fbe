"""Formatting of numbers and text for the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rcm_core.units import GIB, MIB

__all__ = ["data_size", "duration", "escape", "interval", "markdown_table", "number", "per_sample"]

BAR = "\\|"


def number(value: float) -> str:
    """Format with three significant digits, without an exponent if that is readable."""
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-4:
        return f"{value:.2e}"
    if 0 < size < 0.1:
        return f"{value:.3g}"
    return f"{value:,.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def per_sample(seconds: float) -> str:
    """Format the time for one sample in s, ms or µs."""
    if seconds >= 1:
        return f"{number(seconds)} s"
    return f"{number(seconds * 1e3)} ms" if seconds >= 1e-4 else f"{number(seconds * 1e6)} µs"


def duration(seconds: float) -> str:
    """Format the wall-clock time of a stage."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def data_size(count: float) -> str:
    """Format bytes in binary units."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


def interval(estimate: dict[str, Any], unit: float = 1.0) -> str:
    """Format the 95 % interval."""
    return f"{number(estimate['low'] * unit)} – {number(estimate['high'] * unit)}"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; bars inside cells are escaped."""
    lines = [_markdown_row(heads), "|" + "---|" * len(heads), *map(_markdown_row, rows)]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"
