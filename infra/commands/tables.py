"""Command-line tables that are readable at any width: no cell is cut, and a row of numbers stays on one line.

A table that is wider than the terminal is printed as several, one below the other, each with the first columns. Without
a terminal (a file, a pipe, a log) the width is unlimited, so every row is one line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console

GAP = "  "
UNLIMITED = 100_000
LEAST_TEXT = 24
"""Minimum width of a sentence beside the other cells of its row; a narrower one is printed below them."""


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    keep: int = 1,
    right: bool = False,
    bold_last: bool = False,
) -> None:
    """Print ``rows`` (cells of plain text) under ``heads``.

    keep: number of first columns that name a row; every part of a split table begins with them.
    right: align the other columns to the right.
    """
    console = Console(highlight=False)
    if title:
        _line(console, title, "italic")
    widths = _widths([heads, *rows])
    for number, part in enumerate(_parts(widths, keep, _room(console))):
        if number:
            console.print()
        for row in (heads, *rows):
            cells = (_align(row[i], widths[i], right and i >= keep) for i in part)
            bold = row is heads or (bold_last and row is rows[-1])
            _line(console, GAP.join(cells).rstrip(), "bold" if bold else "")


def print_findings(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows whose last cell is a sentence, wrapped between words beside the other cells, or below them."""
    console = Console(highlight=False)
    widths = _widths([row[:-1] for row in (heads, *rows)])
    room = _room(console)
    indent = sum(widths) + len(GAP) * len(widths)
    below = room - indent < LEAST_TEXT
    for row in (heads, *rows):
        first = GAP.join(_align(cell, width, False) for cell, width in zip(row, widths)).rstrip()
        style = "bold" if row is heads else ""
        left, given = (4, "") if below else (indent, set_cell_size(first, indent))
        if below:
            _line(console, first, style)
        wrapped = textwrap.wrap(
            row[-1], max(room - left, LEAST_TEXT), break_on_hyphens=False, break_long_words=False
        )
        for text in wrapped or ([] if below else [""]):
            _line(console, ((given or " " * left) + text).rstrip(), style)
            given = ""


def _parts(widths: Sequence[int], keep: int, room: int) -> Iterator[list[int]]:
    """Yield the column indices of each part: as many as fit beside the first ``keep``, at least one."""
    named = list(range(keep))
    used = start = sum(widths[i] + len(GAP) for i in named)
    part: list[int] = []
    for index in range(keep, len(widths)):
        if part and used + widths[index] > room:
            yield named + part
            part, used = [], start
        part.append(index)
        used += widths[index] + len(GAP)
    yield named + part


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*rows)]


def _align(cell: str, width: int, right: bool) -> str:
    return " " * (width - cell_len(cell)) + cell if right else set_cell_size(cell, width)


def _line(console: Console, text: str, style: str) -> None:
    """Print ``text`` unwrapped; a narrower terminal wraps it by itself."""
    console.print(text, style=style, soft_wrap=True, markup=False)


def _room(console: Console) -> int:
    return console.width if console.is_terminal else UNLIMITED
