"""The check of the Markdown files finds what it names, and nothing in code, tables and headings."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_links import (
    WIDTH,
    documentation,
    find_broken_links,
    find_long_lines,
    find_old_words,
    text_lines,
)

LONG = "word " * 30


@pytest.mark.parametrize("text", [
    f"# {LONG}",
    f"| {LONG}|",
    f"```sh\n{LONG}\n```",
    f"Text:\n\n    {LONG}\n    {LONG}\n",
    f"- item\n\n      {LONG}\n",
    "[link](https://example.org/" + "a" * WIDTH + ")",
    "- [link](https://example.org/" + "a" * WIDTH + ")",
])  # fmt: skip
def test_code_tables_headings_and_long_links_need_no_wrapping(text: str) -> None:
    assert find_long_lines(text) == []


@pytest.mark.parametrize(
    "text", [LONG, f"- {LONG}", f"- item\n\n  {LONG}", f"- a\n  - b\n\n    {LONG}", f"    x\n{LONG}"]
)
def test_long_prose_is_named_with_its_line(text: str) -> None:
    (found,) = find_long_lines(text)
    assert found.startswith(f"line {len(text.splitlines())} has ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The run goes\non when it can.", ["goes on"]),
        ("Begin anew, all but for one.", ["anew", "but for"]),
        ("so many", ["so many"]),
        ("`goes on` and\n\n    anew\n\nin code, but forward and mental are words of today", []),
    ],
)
def test_old_words_are_found_in_prose_also_across_lines(text: str, words: list[str]) -> None:
    assert [line.split('"')[1] for line in find_old_words(text)] == words


def test_lines_have_their_numbers() -> None:
    assert list(text_lines("a\n\n```\ncode\n```\nb")) == [(1, "a"), (6, "b")]


def test_links_lead_to_files_and_headings(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#a-heading) [b](other.md#another) [c](none.md) `[d](none.md)` [e](https://e.org)"
    )
    assert [line.split()[0] for line in find_broken_links(page)] == ["other.md#another", "none.md"]


def test_comments_and_docstrings_of_code_are_read_and_no_other_strings() -> None:
    code = (
        '"""A module.\n\n    It goes\n    on.\n"""\nX = "so many"  # anew\n"""X, but for one."""\n\n\n'
        'def mend() -> None:\n    """Says.\n\n    It is dealt.\n    """\n'
    )
    words = {line.split('"')[1] for line in find_old_words(documentation(code))}
    assert words == {"goes on", "anew", "but for", "dealt"}
