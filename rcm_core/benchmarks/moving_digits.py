"""``moving_digits``: a real handwritten digit that crosses the picture, right or left; the prompt says both.

Labels are ``2 * digit + direction`` with right = 0 and left = 1.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.scenes.scans import named_digit, scans

judge = "classifier"
categories: tuple[str, ...] = ()
classes = 20
emphasis = (1,) * classes
draw = None
meanings = None
FRAMES, HEIGHT, WIDTH = 5, 8, 12
DIRECTIONS = ("right", "left")


def images(split: str) -> tuple[Tensor, Tensor]:
    """Return clips in [-1, 1], float32 ``[N, C=1, T=5, H=8, W=12]``, and labels 0..19, int64 ``[N]``.

    Every scan of the split gives two neighbouring clips, moving right and moving left by one pixel per frame.
    """
    pixels, digits = scans(split)
    right = torch.full((len(pixels), FRAMES, HEIGHT, WIDTH), -1.0)
    for frame in range(FRAMES):
        right[:, frame, :, frame : frame + 8] = pixels
    clips = torch.stack((right, right.flip(1)), dim=1)
    labels = torch.stack((2 * digits, 2 * digits + 1), dim=1)
    return clips.flatten(0, 1)[:, None], labels.flatten()


def label(prompt: str) -> int:
    """Return the label of ``prompt``'s digit and direction; InputError if either is missing or ambiguous."""
    named = [i for i, way in enumerate(DIRECTIONS) if re.search(rf"\b{way}\b", prompt.lower())]
    if len(named) != 1:
        found = "both directions" if named else "no direction"
        raise InputError(f"the prompt {prompt!r} names {found}; say 'moving right' or 'moving left'")
    return 2 * named_digit(prompt) + named[0]


def compose_split(split: str) -> tuple[Tensor, list[int]]:
    """Return the images of ``images`` and their labels."""
    pixels, labels = images(split)
    return pixels, labels.tolist()
