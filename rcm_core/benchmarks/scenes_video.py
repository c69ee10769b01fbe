"""``scenes_video``: one or two coloured handwritten digits that move as the prompt says, 8 frames of 32x32.

Labels are the index of the prompt's category.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_core.rng import generator
from rcm_core.scenes.motion import CATEGORIES, DIRECTIONS, Motion, compose_motion, parse_motion
from rcm_core.scenes.request import NAMES, Thing

judge = "motion"
categories = CATEGORIES
classes = len(CATEGORIES)
emphasis = (1,) * classes
meanings = None
CLIPS = {"train": 400, "validation": 200, "test": 400}


def label(prompt: str) -> int:
    """Return the index of the category of ``prompt``; InputError if it cannot be parsed."""
    return CATEGORIES.index(parse_motion(prompt).category)


def draw(prompt: str, split: str, rng: torch.Generator) -> Tensor:
    """Draw a clip of ``prompt`` from scans of ``split``, in [-1, 1], float32 ``[C=3, T=8, H=32, W=32]``."""
    return compose_motion(parse_motion(prompt), split, rng)[0]


def images(split: str) -> tuple[Tensor, Tensor]:
    """Return real clips in [-1, 1], float32 ``[N, C=3, T=8, H=32, W=32]``, and categories, int64 ``[N]``.

    InputError for an unknown split.
    """
    clips, motions = compose_split(split)
    return clips, torch.tensor([CATEGORIES.index(motion.category) for motion in motions])


def compose_split(split: str) -> tuple[Tensor, list[Motion]]:
    """Return the clips of ``images`` and the motion of each; categories alternate, the rest is random."""
    count = CLIPS.get(split, 1)  # scans refuse an unknown split
    rngs = [generator("scenes_video", split, i) for i in range(count)]
    motions = [random_motion(CATEGORIES[i % classes], rng) for i, rng in enumerate(rngs)]
    return torch.stack([compose_motion(motion, split, rng)[0] for motion, rng in zip(motions, rngs)]), motions


def random_motion(category: str, rng: torch.Generator) -> Motion:
    """Return a random motion of ``category``; two digits or colours of one differ."""
    digits, colours = (torch.randperm(high, generator=rng)[:2].tolist() for high in (10, len(NAMES)))
    line, *turns = torch.randint(2, (3,), generator=rng).tolist()
    ways = tuple(DIRECTIONS)[2 * line : 2 * line + 2]
    many = 1 + (category in ("two", "attribution"))
    tinted = category in ("colours", "attribution")
    things = tuple(Thing(d, c if tinted else -1) for d, c in zip(digits[:many], colours))
    return Motion(category, things, tuple(ways[turn] for turn in turns[:many]))
