"""Text in figures without overlaps: titles wrapped to their axes, labels of points moved apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

PLACES = (
    ((0, 5), "center", "bottom"), ((0, -5), "center", "top"), ((7, 0), "left", "center"), ((-7, 0), "right", "center"),
    ((0, 16), "center", "bottom"), ((0, -16), "center", "top"),
)  # fmt: skip
"""Offsets in points from the end of a point's interval, with alignments; a label takes the first free one."""


def wrap_titles(figure: Figure) -> None:
    """Break every title of ``figure`` that is wider than its axes into several lines."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        title = axes.set_title(axes.get_title(loc="left"), loc="left")
        room, width = axes.get_window_extent().width, title.get_window_extent().width
        if width > room:
            characters = max(8, int(len(title.get_text()) * room / width))
            title.set_text(textwrap.fill(title.get_text(), characters, break_long_words=False))


def label_points(
    axes: Axes, points: Sequence[tuple[str, float, float, float]], colour: str, size: float
) -> list[Annotation]:
    """Write each text above (x, high) or, if that overlaps, below (x, low) or beside; points are (text, x, low, high).

    The limits and scales of ``axes`` must be final.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    taken: list[Bbox] = []
    written = []
    for text, x, low, high in points:
        note = axes.annotate(
            text, (x, high), xytext=(0, 0), textcoords="offset points", color=colour, fontsize=size
        )
        for offset, horizontal, vertical in PLACES:
            note.xy = (x, low if offset[1] < 0 else high if offset[1] else (low + high) / 2)
            note.set(position=offset, horizontalalignment=horizontal, verticalalignment=vertical)
            box = note.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        written.append(note)
    return written
