"""Prompt files: UTF-8 text with a prompt per line, or a column of a table."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from rcm_core.errors import InputError

SPLITS = ("train", "validation", "test")
TABLES = (".csv", ".jsonl", ".parquet")
COLUMNS = ("prompt", "text", "caption")
"""What the column of the prompts may be called; the first that a table has is read."""


def read_prompts(path: Path) -> list[str]:
    """The prompts of ``path`` (a .csv, .jsonl or .parquet table; else text), stripped, in order; InputError if it is
    missing, empty or repeats one.
    """
    if not path.is_file():
        raise InputError(
            f"prompt file {path} does not exist; write one prompt per line, or mend prompts: in the params"
        )
    prompts = [prompt for line in read_lines(path) if (prompt := line.strip())]
    if not prompts:
        raise InputError(f"prompt file {path} is empty; write at least one prompt, one per line")
    twice = (
        next((p for i, p in enumerate(prompts) if p in prompts[:i]), None)
        if len(set(prompts)) < len(prompts)
        else None
    )
    if twice is not None:
        raise InputError(f"prompt file {path} holds {twice!r} twice; remove one")
    return prompts


def read_lines(path: Path) -> list[str]:
    """The lines of a prompt file: of text, or the column of a table (.csv, .jsonl, .parquet)."""
    if path.suffix in TABLES:
        where = f"prompt file {path}"
        return [
            " ".join(p.split()) for p in text_column(read_table(where, path.suffix, path.read_bytes()), where)
        ]
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"prompt file {path} is not UTF-8 text ({error}); save it as UTF-8") from error


def read_table(where: str, suffix: str, content: bytes) -> pd.DataFrame:
    """The table in the bytes of a file with one of the suffixes ``TABLES``; InputError, which begins with ``where``, if
    it is none.
    """
    stream = io.BytesIO(content)
    try:
        if suffix == ".csv":
            return pd.read_csv(stream, dtype=str, keep_default_na=False)
        if suffix == ".jsonl":
            return pd.read_json(stream, lines=True, dtype=False)
        return pd.read_parquet(stream)
    except (ValueError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"{where} is not a {suffix} table ({reason}); save it as UTF-8 text or Parquet"
        ) from error


def text_column(frame: pd.DataFrame, where: str) -> list[str]:
    """The prompts of a table; what is missing is an empty text. InputError, which begins with ``where``, if no column
    is called as ``COLUMNS`` are, or it holds something else.
    """
    column = next((name for name in COLUMNS if name in frame.columns), None)
    if column is None:
        raise InputError(
            f"{where} has the columns {', '.join(map(str, frame.columns))}; call the one with the texts"
            f" {' or '.join(COLUMNS)}"
        )
    values = ["" if pd.isna(value) else value for value in frame[column].tolist()]
    other = next((value for value in values if not isinstance(value, str)), None)
    if other is not None:
        raise InputError(f"{where} has {other!r} in the column {column}; expected texts")
    return values


def refuse_overlap(splits: dict[str, list[str]]) -> None:
    """InputError if a prompt (ignoring case and spacing) stands in two splits."""
    seen: dict[str, str] = {}
    for split, prompts in splits.items():
        for prompt in prompts:
            key = " ".join(prompt.lower().split())
            other = seen.setdefault(key, split)
            if other != split:
                raise InputError(
                    f"prompt {prompt!r} stands in both {other} and {split}; what is reported must not have been"
                    " trained or chosen on: remove it from one"
                )


def load_split(workspace: Path, split: str) -> list[str]:
    """Prompts of ``split`` in file order, from the outputs of the prompts stage."""
    path = workspace / "runs/prompts/prompts.parquet"
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with `dvc repro prompts`")
    remedy = "`dvc repro prompts` makes it again"
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} is not a Parquet table ({' '.join(str(error).split())}); {remedy}"
        ) from error
    if lacking := sorted({"split", "prompt"} - set(frame.columns)):
        raise InputError(f"{path} lacks the column {lacking[0]}; {remedy}")
    found = frame.loc[frame["split"] == split, "prompt"].tolist()
    if not found or not all(isinstance(prompt, str) for prompt in found):
        raise InputError(f"{path} has no prompts of the split {split}, or others than texts; {remedy}")
    return found


def by_label(
    prompts: Sequence[str], label: Callable[[str], int], asked: Iterable[int]
) -> dict[int, list[int]]:
    """Numbers of the ``prompts`` of each label that is ``asked`` for; InputError if none names one of them."""
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
    """``count`` prompts, each as often as any other (to one)."""
    return tuple(prompts[i % len(prompts)] for i in range(count))
