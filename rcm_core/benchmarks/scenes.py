"""``scenes``: up to four coloured handwritten digits on a canvas of 32x32 that a prompt composes.

Labels are the index of the prompt's category.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_core.rng import generator
from rcm_core.scenes.compose import compose
from rcm_core.scenes.request import (
    CATEGORIES,
    NAMES,
    PLURALS,
    RELATIONS,
    SIDES,
    Request,
    Thing,
    parse,
)
from rcm_core.scenes.scans import WORDS

judge = "scenes"
categories = CATEGORIES
classes = len(CATEGORIES)
emphasis = (1, 2, 3, 1, 2, 3)
"""Relative sampling frequency of each category in training the teacher; higher for several objects."""
IMAGES = {"train": 1200, "validation": 300, "test": 600}


def label(prompt: str) -> int:
    """Return the index of the category of ``prompt``; InputError if it cannot be parsed."""
    return CATEGORIES.index(parse(prompt).category)


def meanings(prompt: str) -> dict[int, tuple[int, ...]]:
    """Return the meanings of the words that name digits, by word index in ``prompt``: the digit, its colour (0: any),
    its position (0: any, then left, right, above, below, first and second in reading order) and the number of further
    copies.
    """
    request, words = parse(prompt), prompt.lower().split()
    nouns = [i for i, word in enumerate(words) if word in PLURALS]
    nouns = nouns or [i for i, word in enumerate(words) if word in WORDS]
    swapped = next((SIDES[word][1] for word in words if word in SIDES), False)
    kind = (*RELATIONS, "").index(request.relation)
    found: dict[int, tuple[int, ...]] = {}
    for order, at in enumerate(nouns):
        which = order ^ swapped
        thing = request.things[which]
        place = 1 + 2 * kind + which if len(nouns) > 1 else 0
        found[at] = (thing.digit, thing.colour + 1, place, len(request.things) - 1)
    return found


def draw(prompt: str, split: str, rng: torch.Generator) -> Tensor:
    """Draw an image of ``prompt`` from scans of ``split``, in [-1, 1], float32 ``[C=3, T=1, H=32, W=32]``."""
    return compose(parse(prompt), split, rng)[0]


def images(split: str) -> tuple[Tensor, Tensor]:
    """Return real scenes in [-1, 1], float32 ``[N, C=3, T=1, H=32, W=32]``, and categories, int64 ``[N]``.

    InputError for an unknown split.
    """
    pixels, requests = compose_split(split)
    return pixels, torch.tensor([CATEGORIES.index(request.category) for request in requests])


def compose_split(split: str) -> tuple[Tensor, list[Request]]:
    """Return the scenes of ``images`` and the request of each.

    Categories alternate; the rest is random, from the scans of ``split``.
    """
    count = IMAGES.get(split, 1)  # scans refuse an unknown split
    rngs = [generator("scenes", split, i) for i in range(count)]
    requests = [random_request(CATEGORIES[i % classes], rng) for i, rng in enumerate(rngs)]
    pixels = torch.stack([compose(request, split, rng)[0] for request, rng in zip(requests, rngs)])
    return pixels, requests


def random_request(category: str, rng: torch.Generator) -> Request:
    """Return a random request of ``category``; two digits or colours of one request differ."""
    first, second = torch.randperm(10, generator=rng)[:2].tolist()
    one, other = torch.randperm(len(NAMES), generator=rng)[:2].tolist()
    count, side = (int(torch.randint(high, (1,), generator=rng)) for high in (3, 2 * len(RELATIONS)))
    relation = RELATIONS[side % 2]
    match category:
        case "single":
            return Request(category, (Thing(first),))
        case "counting":
            return Request(category, (Thing(first),) * (2 + count))
        case "colours":
            return Request(category, (Thing(first, one),))
        case "attribution":
            things = (Thing(first, one), Thing(second, other))
            return Request(category, things, relation if side >= 2 else "")
    return Request(category, (Thing(first), Thing(second)), relation if category == "position" else "")
