"""Prompt files: UTF-8 text, a prompt per line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from rcm_core.errors import InputError

SPLITS = ("train", "validation", "test")


def read_prompts(path: Path) -> list[str]:
    """The prompts of ``path``, stripped, in order; InputError if it is missing, empty or repeats one."""
    if not path.is_file():
        raise InputError(
            f"prompt file {path} does not exist; write one prompt per line, or mend prompts: in the params"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"prompt file {path} is not UTF-8 text ({error}); save it as UTF-8") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
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
    frame = pd.read_parquet(path)
    return [str(p) for p in frame.loc[frame["split"] == split, "prompt"]]


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
