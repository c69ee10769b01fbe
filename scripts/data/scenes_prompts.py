"""Write data/prompts/scenes (from the project root): compositions in disjoint splits, each in several wordings.

The counts of the test split are GenEval's (arXiv 2310.11513): 553 prompts in six categories.
"""

from __future__ import annotations

import random
from itertools import chain, combinations, permutations, product, zip_longest
from pathlib import Path
from typing import NamedTuple

from rcm_core.scenes.request import CATEGORIES, COUNTS, NAMES, PLURALS, RELATIONS, Request, Thing, noun, parse

SEED = 7
SPLITS = ("test", "validation", "train")
CARRIERS = (
    "{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "a scene of {}",
    "{} on black", "a photo of {} on black", "a picture of {} on black", "a drawing of {} on black",
)  # fmt: skip
NOUNS = ("a {}", "the digit {}", "a handwritten {}")
GROUPS = ("{}", "exactly {}", "a group of {}")
PAIRS = ("{} and {}", "{} with {}")
SIDES = {
    "left": (("{} left of {}", "{} to the left of {}"), ("{} right of {}", "{} to the right of {}")),
    "above": (("{} above {}",), ("{} below {}",)),
}
"""Wordings of "the first is <relation> the second", and of the same with the second named first."""


class Deal(NamedTuple):
    """Compositions and prompts of one category in every split, in the order of ``SPLITS``."""

    compositions: tuple[int, int, int]
    prompts: tuple[int, int, int]


DEALS = {
    "single": Deal((4, 2, 4), (80, 40, 120)),
    "two": Deal((15, 6, 24), (99, 42, 480)),
    "counting": Deal((10, 5, 15), (80, 40, 300)),
    "colours": Deal((19, 8, 33), (94, 40, 400)),
    "position": Deal((50, 22, 108), (100, 44, 864)),
    "attribution": Deal((100, 44, 1200), (100, 44, 1200)),
}


def compositions(category: str) -> list[Request]:
    """Return every request of ``category``, one for each composition."""
    pairs = list(combinations(range(10), 2))
    match category:
        case "single":
            return [Request(category, (Thing(digit),)) for digit in range(10)]
        case "counting":
            return [Request(category, (Thing(d),) * n) for d, n in product(range(10), COUNTS.values())]
        case "colours":
            return [Request(category, (Thing(d, c),)) for d, c in product(range(10), range(len(NAMES)))]
        case "two":
            return [Request(category, (Thing(a), Thing(b))) for a, b in pairs]
        case "position":
            orders = permutations(range(10), 2)
            return [Request(category, (Thing(a), Thing(b)), r) for (a, b), r in product(orders, RELATIONS)]
    tinted = product(pairs, permutations(range(len(NAMES)), 2), ("", *RELATIONS))
    return [Request(category, (Thing(a, c), Thing(b, d)), r) for (a, b), (c, d), r in tinted]


def wordings(request: Request) -> list[str]:
    """Return every prompt for ``request``."""
    things = request.things
    match request.category:
        case "single" | "colours":
            cores = [noun(things[0], form) for form in NOUNS]
        case "counting":
            count = next(word for word, number in COUNTS.items() if number == len(things))
            cores = [group.format(f"{count} {PLURALS[things[0].digit]}") for group in GROUPS]
        case _:
            said, turned = SIDES[request.relation] if request.relation else (PAIRS, PAIRS)
            nouns = [[noun(thing, form) for thing in things] for form in NOUNS]
            cores = [w.format(a, b) for w, (a, b) in product(said, nouns)]
            cores += [w.format(b, a) for w, (a, b) in product(turned, nouns)]
    return [carrier.format(core) for carrier, core in product(CARRIERS, dict.fromkeys(cores))]


def choose(requests: list[Request], count: int, rng: random.Random) -> list[str]:
    """``count`` prompts, as equally many of every composition as there can be; compositions take turns."""
    tables = [rng.sample(wordings(request), len(wordings(request))) for request in requests]
    turns = chain.from_iterable(zip_longest(*tables))
    return [prompt for prompt in turns if prompt is not None][:count]


def deal(rng: random.Random) -> dict[str, list[str]]:
    """The prompts of every split; categories take turns, so that any first part of a list asks for all of them."""
    columns: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    for category in CATEGORIES:
        requests = compositions(category)
        rng.shuffle(requests)
        for split, many, count in zip(SPLITS, *DEALS[category]):
            chosen, requests = requests[:many], requests[many:]
            columns[split].append(choose(chosen, count, rng))
    lists = {
        split: [prompt for turn in zip_longest(*lists) for prompt in turn if prompt is not None]
        for split, lists in columns.items()
    }
    for prompt in chain.from_iterable(lists.values()):
        parse(prompt)
    return lists


def main() -> None:
    folder = Path("data/prompts/scenes")
    folder.mkdir(parents=True, exist_ok=True)
    for split, prompts in deal(random.Random(SEED)).items():
        (folder / f"{split}.txt").write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
