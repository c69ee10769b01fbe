"""``digits``: one real handwritten digit per image; the prompt names it.

``protocols.Benchmark`` describes the names.
"""

from __future__ import annotations

from torch import Tensor

from rcm_core.scenes.scans import named_digit, scans

judge = "classifier"
categories: tuple[str, ...] = ()
classes = 10
emphasis = (1,) * classes
draw = None
meanings = None


def images(split: str) -> tuple[Tensor, Tensor]:
    """Return pixels in [-1, 1], float32 ``[N, C=1, T=1, H=8, W=8]``, and labels 0..9, int64 ``[N]``.

    ``split`` is "train" (1,197 scans), "validation" (200) or "test" (400); InputError otherwise.
    """
    pixels, labels = scans(split)
    return pixels[:, None, None], labels


def label(prompt: str) -> int:
    """Return the digit that ``prompt`` names; InputError if it names none or several."""
    return named_digit(prompt)


def compose_split(split: str) -> tuple[Tensor, list[int]]:
    """Return the images of ``images`` and their labels."""
    pixels, labels = images(split)
    return pixels, labels.tolist()
