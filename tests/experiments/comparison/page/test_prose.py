"""Prose of the page is wrapped; nothing else changes."""

from __future__ import annotations

from experiments.comparison.page.prose import WIDTH, wrap

TABLE = "| a | b |\n|---|---|\n| " + "wide " * 40 + "| 1 |"
HEADING = "### " + "a heading of many words " * 6
PARAGRAPH = "Two paths - one of them with `a code span that stays on one line` - and numbers + 1. " * 4
LIST = "- `mini`, equal student updates:\n  - lowest distance " + ", ".join(
    f"`method_{n}`" for n in range(20)
)


def test_paragraphs_and_lists_are_wrapped_and_keep_their_words() -> None:
    page = "\n\n".join([HEADING, PARAGRAPH, TABLE, LIST]) + "\n"
    wrapped = wrap(page)
    assert wrapped.split() == page.split()
    heading, paragraph, table, items = wrapped.rstrip("\n").split("\n\n")
    assert (heading, table) == (HEADING, TABLE)
    assert all(len(line) <= WIDTH for line in (paragraph + "\n" + items).splitlines())
    assert all(line.count("`") % 2 == 0 for line in paragraph.splitlines())
    assert not any(line.startswith(("- ", "+ ")) for line in paragraph.splitlines())
    assert [line[:4] for line in items.splitlines()][:3] == ["- `m", "  - ", "    "]


def test_wrapping_again_changes_nothing() -> None:
    page = wrap("\n\n".join([HEADING, PARAGRAPH, TABLE, LIST]))
    assert wrap(page) == page
