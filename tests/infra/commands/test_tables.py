"""Tables stay readable at any width: nothing is cut, a row of numbers is one line."""

from __future__ import annotations

import json
import re

import pytest
from projects import REPOSITORY

from infra.commands.summary import metric_table
from infra.commands.tables import print_findings, print_table

METRICS = json.loads((REPOSITORY / "docs/results/mini.json").read_text())["metrics"]
HEADS, ROWS = metric_table(METRICS)


def plain(said: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", said)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("FORCE_COLOR", "1")
    return monkeypatch


@pytest.mark.parametrize("width", [50, 60, 80, 250])
def test_a_table_wider_than_the_terminal_is_split_between_columns(
    width: int, terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", str(width))
    terminal.setenv("TTY_COMPATIBLE", "1")
    print_table(HEADS, ROWS)
    said = plain(capsys.readouterr().out)
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= width
    parts = [part.splitlines() for part in said.split("\n\n")]
    for row in ROWS:
        lines = [line for part in parts for line in part if line.split("  ")[0] == row[0]]
        assert len(lines) == len(parts)
        for cell in row:
            assert sum(cell in line for line in lines) >= 1
    assert (len(parts) == 1) == (width == 250)


def test_without_a_terminal_every_sampler_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADS, ROWS, title="a title\nof two lines", bold_last=True, right=True)
    lines = capsys.readouterr().out.splitlines()[3:]
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, ROWS):
        assert all(cell in line for cell in row)


@pytest.mark.parametrize("width", [30, 60, 80, None])
def test_sentences_are_wrapped_between_words(
    width: int | None, terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if width:
        terminal.setenv("COLUMNS", str(width))
        terminal.setenv("TTY_COMPATIBLE", "1")
    else:
        terminal.delenv("FORCE_COLOR")
    sentence = "not installed; to get it: pip install --no-build-isolation -e '.[gpu]' [optional]"
    print_findings(("", "found"), [("attention without tangents", sentence), ("git", "")])
    said = plain(capsys.readouterr().out)
    assert "…" not in said
    assert " ".join(said.split()) == f"found attention without tangents {sentence} git"
    assert max(map(len, said.splitlines())) <= (width or 200)
    if width is None:
        assert len(said.splitlines()) == 3
