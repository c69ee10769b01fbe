"""Prompt files: UTF-8 text with a prompt per line, or a column of a table."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rcm_core.errors import InputError
from rcm_core.storage.formats import parse_json_lines, parse_parquet, text_lines

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
TABLES = (".csv", ".jsonl", ".parquet")
COLUMNS = ("prompt", "text", "caption")
"""Possible names of the column of prompts; the first that a table has is read."""
FEWEST = 2
"""Fewest prompts for training: a student of one prompt learns nothing that depends on it."""
LONGEST = 10_000
"""Most characters of a prompt or caption; text encoders take at most 512 tokens."""
LARGEST_TEXT = 4 * LONGEST + 3
"""Most bytes of a prompt or caption in UTF-8, with a byte order mark."""
BYTE_ORDER_MARK = "\ufeff"
REFUSED = {"Cc": "the control character", "Cs": "half of a surrogate pair,"}
"""Unicode categories that a text must not contain -> words for the error."""


def read_prompts(path: Path, fewest: int = 1) -> list[str]:
    """Return the prompts of ``path`` (a .csv, .jsonl or .parquet table, else text) in order, through ``clean_text``.

    InputError if the file is missing, empty or not UTF-8, has fewer than ``fewest`` prompts, repeats one, or has one
    that ``clean_text`` refuses.
    """
    if not path.is_file():
        raise InputError(
            f"prompt file {path} does not exist; write one prompt per line, or correct prompts: in the params"
        )
    where = f"prompt file {path}"
    prompts = [prompt for prompt in read_lines(path) if prompt]
    if not prompts:
        raise InputError(f"{where} is empty; write at least one prompt, one per line")
    if len(prompts) < fewest:
        raise InputError(
            f"{where} has {len(prompts)} prompt, expected at least {fewest} to train on; write more"
        )
    seen: set[str] = set()
    for prompt in prompts:
        if prompt in seen:
            raise InputError(f"{where} holds {prompt!r} twice; remove one")
        seen.add(prompt)
    return prompts


def read_lines(path: Path) -> list[str]:
    """Return the lines of a prompt file, or the column of a table (.csv, .jsonl, .parquet), through ``clean_text``."""
    kind = "row" if path.suffix in TABLES else "line"
    return [clean_text(text, f"prompt file {path}: {kind} {i}") for i, text in enumerate(_texts(path), 1)]


def clean_text(text: str, where: str) -> str:
    """Return ``text`` without byte order marks and with single spaces for white space of any kind (line and paragraph
    separators, form feeds, next-line characters).

    InputError, which begins with ``where``, if it has NUL or another control character, half of a surrogate pair, or
    more than ``LONGEST`` characters.
    """
    if len(text) > LONGEST:
        raise InputError(
            f"{where} has {len(text):,} characters, expected at most {LONGEST:,}; text encoders read the first few"
            " hundred words: shorten it"
        )
    cleaned = " ".join(text.replace(BYTE_ORDER_MARK, "").split())
    for character in cleaned:
        if unicodedata.category(character) in REFUSED:
            raise InputError(
                f"{where} has {REFUSED[unicodedata.category(character)]} U+{ord(character):04X}; write it as UTF-8 text"
                " without it"
            )
    return cleaned


def decode_text(content: bytes, where: str) -> str:
    """Decode UTF-8 text, with or without a byte order mark; InputError, which begins with ``where``, for others."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text ({error}); save it as UTF-8") from error


def _texts(path: Path) -> list[str]:
    where, content = f"prompt file {path}", path.read_bytes()
    if path.suffix in TABLES:
        return text_column(read_table(where, path.suffix, content), where)
    return text_lines(decode_text(content, where))


def read_table(where: str, suffix: str, content: bytes) -> pd.DataFrame:
    """Return the table in the bytes of a file with one of the suffixes ``TABLES``; InputError, which begins with
    ``where``, if it is damaged.
    """
    if suffix == ".parquet":
        return parse_parquet(content, where, "save it as Parquet with texts in UTF-8")
    text = decode_text(content, where)
    return _csv(text, where) if suffix == ".csv" else parse_json_lines(text, where, "mend that line")


def _csv(content: str, where: str) -> pd.DataFrame:
    """Return the table in ``content``; InputError unless every row has as many fields as the header."""
    import pandas as pd

    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        lines = [(rows.line_num, row) for row in rows if row]
    except csv.Error as error:
        raise InputError(
            f"{where} is not a .csv table (line {rows.line_num}: {error}); mend that line"
        ) from error
    if not lines:
        raise InputError(f"{where} is not a .csv table (it is empty); begin it with the names of its columns")
    (_, names), *rest = lines
    if len(set(names)) < len(names):
        raise InputError(f"{where} has two columns of one name; rename or remove one")
    for number, row in rest:
        if len(row) != len(names):
            raise InputError(
                f"{where}: line {number} has {len(row)} fields, expected {len(names)} as in the first line; put texts"
                " with commas into double quotes"
            )
    return pd.DataFrame([row for _, row in rest], columns=names, dtype=str)


def text_column(frame: pd.DataFrame, where: str) -> list[str]:
    """Return the prompts of a table; missing values are empty texts. Raises InputError, which begins with ``where``, if
    no column has a name of ``COLUMNS``, or the column has other values than texts.
    """

    column = next((name for name in COLUMNS if name in frame.columns), None)
    if column is None:
        raise InputError(
            f"{where} has the columns {', '.join(map(str, frame.columns))}; call the one with the texts"
            f" {' or '.join(COLUMNS)}"
        )
    values = frame[column].astype(object).where(frame[column].notna(), "").tolist()
    other = next((value for value in values if not isinstance(value, str)), None)
    if other is not None:
        raise InputError(f"{where} has {other!r} in the column {column}; expected texts")
    return values


def refuse_overlap(splits: dict[str, list[str]]) -> None:
    """Raise InputError if a prompt (ignoring case and spacing) is in two splits."""
    seen: dict[str, str] = {}
    for split, prompts in splits.items():
        for prompt in prompts:
            key = " ".join(prompt.lower().split())
            other = seen.setdefault(key, split)
            if other != split:
                raise InputError(
                    f"prompt {prompt!r} is in both {other} and {split}; the splits must be disjoint: remove it from one"
                )


def by_label(
    prompts: Sequence[str], label: Callable[[str], int], asked: Iterable[int]
) -> dict[int, list[int]]:
    """Return the indices of the ``prompts`` of each label; InputError if a label in ``asked`` has no prompt."""
    named: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        named.setdefault(label(prompt), []).append(number)
    if unnamed := sorted(set(asked) - named.keys()):
        raise InputError(
            f"no training prompt names the images of label {unnamed[0]} (there are {len(named)} labels with a prompt);"
            " add one to the file prompts.train"
        )
    return named


def cycle(prompts: list[str], count: int) -> tuple[str, ...]:
    """Return ``count`` prompts by repeating ``prompts`` in order."""
    return tuple(prompts[i % len(prompts)] for i in range(count))
