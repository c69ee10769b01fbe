"""Where the things that a prompt asks for are in every frame of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from rcm_core.evaluation.judges.detector import Seen
from rcm_core.scenes.request import Thing

FAR = 12.0
"""Pixels per frame; what jumps further is another object."""


def matches(thing: Thing, seen: Seen) -> bool:
    """Whether ``seen`` has the thing's digit and, if it is given, its colour."""
    return thing.digit == seen.digit and thing.colour in (-1, seen.colour)


def shows(things: Sequence[Thing], seen: Sequence[Seen]) -> bool:
    """Whether ``seen`` are exactly ``things``."""
    if len(seen) != len(things):
        return False
    return any(all(map(matches, things, order)) for order in permutations(seen))


def follow(things: Sequence[Thing], frames: Sequence[Sequence[Seen]], most: int) -> np.ndarray:
    """The centre of each of ``things`` in every frame, float64 ``[most, T, 2]``, NaN where it is not seen.

    A track begins at the surest object that matches its thing, in the first frame that has one, and goes on to the
    nearest object that is left in the next, whatever it looks like: what changes its digit under way is still one
    subject.
    """
    tracks = np.full((most, len(frames), 2), np.nan)
    places: list[tuple[float, float] | None] = [None] * len(things)
    for frame, seen in enumerate(frames):
        left = list(seen)
        for k, thing in enumerate(things):
            one = _next(thing, places[k], left)
            if one is not None:
                left.remove(one)
                places[k] = one.x, one.y
                tracks[k, frame] = places[k]
    return tracks


def _next(thing: Thing, place: tuple[float, float] | None, left: Sequence[Seen]) -> Seen | None:
    if place is None:
        return next((one for one in left if matches(thing, one)), None)
    near = [(abs(one.x - place[0]) + abs(one.y - place[1]), -one.score, one) for one in left]
    distance, _, one = min(near, default=(np.inf, 0.0, None))
    return one if distance <= FAR else None
