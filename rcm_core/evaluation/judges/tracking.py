"""Tracking of the things that a prompt asks for through the frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from rcm_core.evaluation.judges.detector import Seen
from rcm_core.scenes.request import Thing

FAR = 12.0
"""Maximum displacement of a track in pixels per frame; beyond it the detection is another object."""


def matches(thing: Thing, seen: Seen) -> bool:
    """Return whether ``seen`` has the thing's digit and, if the thing has one, its colour."""
    return thing.digit == seen.digit and thing.colour in (-1, seen.colour)


def shows(things: Sequence[Thing], seen: Sequence[Seen]) -> bool:
    """Return whether ``seen`` are exactly ``things``."""
    if len(seen) != len(things):
        return False
    return any(all(map(matches, things, order)) for order in permutations(seen))


def follow(things: Sequence[Thing], frames: Sequence[Sequence[Seen]], most: int) -> np.ndarray:
    """Return the centre of each of ``things`` in every frame, float64 ``[most, T, 2]``, NaN where it is not detected.

    A track begins at the most confident match of its thing, in the first frame that has one. It continues at the
    nearest untracked object of the next frame, whatever that is: an object that changes its digit is still one subject.
    """
    tracks = np.full((most, len(frames), 2), np.nan)
    places: list[tuple[float, float] | None] = [None] * len(things)
    for frame, seen in enumerate(frames):
        untracked = list(seen)
        for k, thing in enumerate(things):
            one = _next(thing, places[k], untracked)
            if one is not None:
                untracked.remove(one)
                places[k] = one.x, one.y
                tracks[k, frame] = places[k]
    return tracks


def _next(thing: Thing, place: tuple[float, float] | None, untracked: Sequence[Seen]) -> Seen | None:
    if place is None:
        return next((one for one in untracked if matches(thing, one)), None)
    near = [(abs(one.x - place[0]) + abs(one.y - place[1]), -one.score, one) for one in untracked]
    distance, _, one = min(near, default=(np.inf, 0.0, None))
    return one if distance <= FAR else None
