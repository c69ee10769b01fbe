"""Composition of scenes: real scans, enlarged and tinted, each in its own quadrant of a black canvas."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rcm_core.scenes.request import COLOURS, Request
from rcm_core.scenes.scans import scans

SIZE, QUADRANT, OBJECT = 32, 16, 12
JITTER = QUADRANT - OBJECT
"""Objects lie 0..JITTER pixels from their quadrant's corner in both directions, so they never overlap."""
PAIRS = {"left": ((0, 1), (2, 3)), "above": ((0, 2), (1, 3))}
"""Quadrants (row by row) of the first and the second object of a relation."""
PALETTE = torch.tensor(list(COLOURS.values()))


class Placed(NamedTuple):
    """An object in a scene, with the pixel coordinates of the centre of its square."""

    digit: int
    colour: int
    x: float
    y: float


@lru_cache(maxsize=4)
def inks(split: str) -> tuple[Tensor, ...]:
    """Return the scans of ``split`` in [0, 1], enlarged by bilinear interpolation, ``[n, 12, 12]`` for every digit."""
    pixels, digits = scans(split)
    large = F.interpolate((pixels[:, None] + 1) / 2, size=(OBJECT, OBJECT), mode="bilinear")[:, 0]
    return tuple(large[digits == digit] for digit in range(10))


def quadrants(request: Request, draws: list[float]) -> list[int]:
    """Return the quadrant 0..3 of every thing; ``draws`` are four numbers in [0, 1). Without a side, things are in
    reading order as named.
    """
    if request.relation:
        pairs = PAIRS[request.relation]
        return list(pairs[int(draws[0] * len(pairs))])
    order = sorted(range(4), key=draws.__getitem__)
    return sorted(order[: len(request.things)])


def compose(request: Request, split: str, rng: torch.Generator) -> tuple[Tensor, list[Placed]]:
    """Draw an image of ``request`` in [-1, 1], float32 ``[3, 1, 32, 32]``; return it and its objects.

    ``rng`` chooses the scans of ``split``, and the positions and colours that the request leaves open.
    """
    draws = torch.rand(20, generator=rng).tolist()
    canvas, placed = torch.full((3, 1, SIZE, SIZE), -1.0), []
    for i, (thing, quadrant) in enumerate(zip(request.things, quadrants(request, draws))):
        which, shade, right, down = draws[4 * i + 4 : 4 * i + 8]
        choices = inks(split)[thing.digit]
        colour = thing.colour if thing.colour >= 0 else int(shade * len(PALETTE))
        x = QUADRANT * (quadrant % 2) + int(right * (JITTER + 1))
        y = QUADRANT * (quadrant // 2) + int(down * (JITTER + 1))
        ink = choices[int(which * len(choices))]
        canvas[:, 0, y : y + OBJECT, x : x + OBJECT] += 2 * PALETTE[colour][:, None, None] * ink
        placed.append(Placed(thing.digit, colour, x + OBJECT / 2, y + OBJECT / 2))
    return canvas, placed
