"""Moving scenes: parsing of prompts, and clips of them; one or two digits, each moving in one direction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.scenes.compose import JITTER, OBJECT, PALETTE, QUADRANT, SIZE, Placed, inks
from rcm_core.scenes.request import Thing, named_things
from rcm_core.scenes.scans import WORDS

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Direction -> steps in x and y (downwards)."""
CATEGORIES = ("single", "colours", "two", "attribution")
FRAMES, SPEED = 8, 2
"""Frames of a clip; pixels that an object moves per frame."""
HINT = "say for example 'a red seven moving left' or 'a two moving up and a five moving down'"


@dataclass(frozen=True)
class Motion:
    """The things to show and the direction of each; two things move along one line."""

    category: str
    things: tuple[Thing, ...]
    directions: tuple[str, ...]

    @property
    def composition(self) -> tuple[str | int, ...]:
        """Return a key that is the same for every wording."""
        parts = sorted((t.digit, t.colour, way) for t, way in zip(self.things, self.directions))
        return (self.category, *(value for part in parts for value in part))


@lru_cache(maxsize=16384)
def parse_motion(prompt: str) -> Motion:
    """Parse the motion in ``prompt``: a direction after each digit; other words are ignored.

    Raises InputError if a digit or its direction is missing, or two digits move along different lines.
    """
    words = re.findall(r"[a-z]+", prompt.lower())
    things = named_things(prompt, words)
    ways = tuple(word for word in words if word in DIRECTIONS)
    order = "".join(
        "w" if word in DIRECTIONS else "d" for word in words if word in DIRECTIONS or word in WORDS
    )
    if order not in ("dw", "dwdw"):
        raise InputError(
            f"the prompt {prompt!r} names {len(things)} digits and {len(ways)} directions; name one or two digits,"
            f" each followed by left, right, up or down: {HINT}"
        )
    if len({DIRECTIONS[way][0] == 0 for way in ways}) > 1:
        raise InputError(
            f"the prompt {prompt!r} has one digit move sideways and one up or down, which would collide; move both"
            " along one line"
        )
    category = CATEGORIES[2 * (len(things) - 1) + (things[0].colour >= 0)]
    return Motion(category, things, ways)


def compose_motion(motion: Motion, split: str, rng: torch.Generator) -> tuple[Tensor, list[list[Placed]]]:
    """Draw a clip of ``motion`` in [-1, 1], float32 ``[3, 8, 32, 32]``; return it and the objects of every frame.

    ``rng`` chooses the scans of ``split``, the lanes, the starts, and the colours that the motion leaves open.
    """
    draws = torch.rand(10, generator=rng).tolist()
    clip = torch.full((3, FRAMES, SIZE, SIZE), -1.0)
    placed: list[list[Placed]] = [[] for _ in range(FRAMES)]
    flip = int(draws[0] * 2)
    for i, (thing, way) in enumerate(zip(motion.things, motion.directions)):
        which, shade, start, across = draws[4 * i + 1 : 4 * i + 5]
        ink = inks(split)[thing.digit][int(which * len(inks(split)[thing.digit]))]
        colour = thing.colour if thing.colour >= 0 else int(shade * len(PALETTE))
        lane = int(across * (SIZE - OBJECT + 1))
        if len(motion.things) > 1:
            lane = QUADRANT * (i ^ flip) + int(across * (JITTER + 1))
        for frame in range(FRAMES):
            x, y = place(way, int(start * (SIZE - OBJECT - SPEED * (FRAMES - 1) + 1)), lane, frame)
            clip[:, frame, y : y + OBJECT, x : x + OBJECT] += 2 * PALETTE[colour][:, None, None] * ink
            placed[frame].append(Placed(thing.digit, colour, x + OBJECT / 2, y + OBJECT / 2))
    return clip, placed


def place(way: str, start: int, lane: int, frame: int) -> tuple[int, int]:
    """Return the corner of an object that starts ``start`` pixels behind the canvas' edge and moves in its lane."""
    right, down = DIRECTIONS[way]
    gone = start + SPEED * frame
    along = gone if right + down > 0 else SIZE - OBJECT - gone
    return (along, lane) if right else (lane, along)
