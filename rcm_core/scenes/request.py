"""Requests: the digits that a prompt names, with colour, number and position. ``parse`` reads the prompts of the
scenes benchmarks.

The six categories are GenEval's (Ghosh, Hajishirzi and Schmidt, arXiv 2310.11513), with digits for its objects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rcm_core.errors import InputError
from rcm_core.scenes.scans import WORDS

COLOURS = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.1, 0.9, 0.2),
    "blue": (0.2, 0.35, 1.0),
    "yellow": (1.0, 0.95, 0.1),
    "purple": (0.75, 0.15, 0.95),
    "white": (1.0, 1.0, 1.0),
}
"""Colour name -> red, green, blue in [0, 1]."""
NAMES = tuple(COLOURS)
CATEGORIES = ("single", "two", "counting", "colours", "position", "attribution")
COUNTS = {"two": 2, "three": 3, "four": 4}
PLURALS = tuple(f"{word}es" if word.endswith("x") else f"{word}s" for word in WORDS)
RELATIONS = ("left", "above")
"""Relations of the first object to the second; "a right of b" is "b left of a", "a below b" is "b above a"."""
SIDES = {
    "left": ("left", False),
    "right": ("left", True),
    "above": ("above", False),
    "below": ("above", True),
}
"""Word -> its relation, and whether the objects are swapped for it."""
HINT = "say for example 'a red seven left of a blue two' or 'three fives'"


@dataclass(frozen=True, order=True)
class Thing:
    """A digit 0..9 and its colour (index into ``NAMES``), or -1 for any colour."""

    digit: int
    colour: int = -1


def noun(thing: Thing, form: str) -> str:
    """Return the thing in words: "an eight", "the digit four", "a red seven"."""
    if thing.colour >= 0:
        return f"a {NAMES[thing.colour]} {WORDS[thing.digit]}"
    article = "an {}" if form == "a {}" and thing.digit == 8 else form
    return article.format(WORDS[thing.digit])


@dataclass(frozen=True)
class Request:
    """The things to show, and nothing else; ``relation`` of the first to the second, or ""."""

    category: str
    things: tuple[Thing, ...]
    relation: str = ""

    @property
    def composition(self) -> tuple[str | int, ...]:
        """Return (category, relation, digits and colours), the same for every wording; unordered things are sorted."""
        things = self.things if self.relation else tuple(sorted(self.things))
        return (self.category, self.relation, *(value for t in things for value in (t.digit, t.colour)))


@lru_cache(maxsize=16384)
def parse(prompt: str) -> Request:
    """Parse ``prompt`` into a request; words other than digits, counts, colours and sides are ignored.

    Raises InputError if it names no digit, more than four, or a combination outside the six categories.
    """
    words = re.findall(r"[a-z]+", prompt.lower())
    plural = [i for i, word in enumerate(words) if word in PLURALS]
    single = [i for i, word in enumerate(words) if word in WORDS]
    sides = [word for word in words if word in SIDES]
    if plural:
        return _parse_counted(prompt, words, plural, single, sides)
    things = named_things(prompt, words)
    between = all(single[:1] < [i] < single[-1:] for i, word in enumerate(words) if word in SIDES)
    match things, sides:
        case (thing,), []:
            return Request("single" if thing.colour < 0 else "colours", things)
        case (first, second), ([] | [_]) if between:
            relation, swapped = SIDES[sides[0]] if sides else ("", False)
            category = "attribution" if first.colour >= 0 else "position" if relation else "two"
            return Request(category, (second, first) if swapped else (first, second), relation)
    raise InputError(
        f"the prompt {prompt!r} names {len(things)} digits and {len(sides)} sides; name one digit, or two with at"
        f" most one side between them, or count one: {HINT}"
    )


def named_things(prompt: str, words: list[str]) -> tuple[Thing, ...]:
    """Return the digits among ``words`` with their colours; InputError for a colour of nothing, or of one of two."""
    digits = [(i, WORDS.index(word)) for i, word in enumerate(words) if word in WORDS]
    things = tuple(Thing(digit, _colour(words, i)) for i, digit in digits)
    coloured = sum(thing.colour >= 0 for thing in things)
    if sum(word in COLOURS for word in words) != coloured:
        raise InputError(f"the prompt {prompt!r} has a colour that stands before no digit; {HINT}")
    if len(things) == 2 and coloured == 1:
        raise InputError(f"the prompt {prompt!r} gives one of two digits a colour; give it to both or none")
    return things


def _parse_counted(
    prompt: str, words: list[str], plural: list[int], single: list[int], sides: list[str]
) -> Request:
    where = plural[0]
    before = words[where - 1] if where else ""
    if len(plural) > 1 or single != [where - 1] or before not in COUNTS or sides or set(words) & set(COLOURS):
        raise InputError(
            f"the prompt {prompt!r} does not count one digit from two to four; say 'three fives'"
        )
    return Request("counting", (Thing(PLURALS.index(words[where])),) * COUNTS[before])


def _colour(words: list[str], i: int) -> int:
    return NAMES.index(words[i - 1]) if i and words[i - 1] in COLOURS else -1
