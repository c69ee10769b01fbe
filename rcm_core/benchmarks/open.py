"""``open``: any prompts, no images of its own. The network that ``judge:`` names judges the samples."""

from __future__ import annotations

from typing import NoReturn

from rcm_core.errors import InputError

judge = "open"
categories: tuple[str, ...] = ()
classes = 0
emphasis: tuple[int, ...] = ()
draw = None
meanings = None
UNLABELLED = -1


def label(prompt: str) -> int:  # noqa: ARG001 - every prompt is as good as any other
    """Return ``UNLABELLED``: prompts have no classes."""
    return UNLABELLED


def images(split: str) -> NoReturn:
    """InputError: there are none."""
    raise InputError(f"teacher.data = 'open' has no {split} images; choose a benchmark that has some")


def compose_split(split: str) -> NoReturn:
    """InputError: there are none."""
    images(split)
