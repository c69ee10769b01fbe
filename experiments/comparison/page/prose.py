"""Prose of the page: its notes, and lines of at most 100 characters."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

WIDTH = 100
CODE = re.compile(r"`[^`]+`")
HOLD = "\0"
"""Stands for a space at which no line may end."""


def read_notes(path: Path) -> dict[str, str]:
    """Return the text of ``path`` by the heading of second level above it; nothing if there is no such file."""
    if not path.is_file():
        return {}
    sections = re.split(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)[1:]
    return {name.strip(): text.strip() for name, text in zip(sections[::2], sections[1::2]) if text.strip()}


def wrap(markdown: str) -> str:
    """Wrap paragraphs and list items; tables, headings and pictures stay as they are."""
    return "\n\n".join(_wrap_block(block) for block in markdown.rstrip().split("\n\n")) + "\n"


def _wrap_block(block: str) -> str:
    if block.startswith(("|", "#", "![")):
        return block
    items = re.split(r"\n(?= *- )", block)
    return "\n".join(_fill(item) for item in items)


def _fill(text: str) -> str:
    marker = re.match(r" *- |", text)
    first = marker.group() if marker else ""
    words = CODE.sub(lambda code: code.group().replace(" ", HOLD), text[len(first) :])
    words = re.sub(
        r"\s+([-+*#] )", lambda mark: HOLD + mark.group(1), words
    )  # would begin a list or a heading
    filled = textwrap.fill(
        words,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(HOLD, " ")
