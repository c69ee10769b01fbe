"""Write data/prompts/scenes-video: motions divided into disjoint splits, in several wordings; from the project root."""

from __future__ import annotations

import random
from itertools import chain, combinations, permutations, product, zip_longest
from pathlib import Path

from rcm_core.scenes.motion import CATEGORIES, DIRECTIONS, Motion, parse_motion
from rcm_core.scenes.request import NAMES, Thing, noun

SEED = 11
SPLITS = ("test", "validation", "train")
CARRIERS = ("{}", "a clip of {}", "a video of {}", "a film of {}")
VERBS = ("moving", "going", "sliding")
NOUNS = ("a {}", "the digit {}")
DEALS = {
    "single": ((12, 6, 22), (48, 24, 264)),
    "colours": ((50, 25, 165), (50, 25, 660)),
    "two": ((50, 25, 285), (50, 25, 855)),
    "attribution": ((52, 26, 1000), (52, 26, 1000)),
}
"""Compositions and prompts of each category, in the order of ``SPLITS``."""


def motions(category: str) -> list[Motion]:
    """Return every motion of ``category``, one for each composition."""
    ways, colours = tuple(DIRECTIONS), range(len(NAMES))
    lines = [pair for line in (ways[:2], ways[2:]) for pair in product(line, repeat=2)]
    pairs = list(combinations(range(10), 2))
    match category:
        case "single":
            return [Motion(category, (Thing(d),), (way,)) for d, way in product(range(10), ways)]
        case "colours":
            return [Motion(category, (Thing(d, c),), (w,)) for d, c, w in product(range(10), colours, ways)]
        case "two":
            return [Motion(category, (Thing(a), Thing(b)), pair) for (a, b), pair in product(pairs, lines)]
    tinted = product(pairs, permutations(colours, 2), lines)
    return [Motion(category, (Thing(a, c), Thing(b, d)), pair) for (a, b), (c, d), pair in tinted]


def wordings(motion: Motion) -> list[str]:
    """Every prompt for ``motion``; of two things either comes first."""
    parts = list(zip(motion.things, motion.directions))
    cores = [
        " and ".join(f"{noun(thing, form)} {verb} {way}" for thing, way in order)
        for order, form, verb in product((parts, parts[::-1]), NOUNS, VERBS)
    ]
    return [carrier.format(core) for carrier, core in product(CARRIERS, dict.fromkeys(cores))]


def choose(chosen: list[Motion], count: int, rng: random.Random) -> list[str]:
    """Return ``count`` prompts; compositions alternate."""
    tables = [rng.sample(wordings(motion), len(wordings(motion))) for motion in chosen]
    return [prompt for prompt in chain.from_iterable(zip_longest(*tables)) if prompt is not None][:count]


def deal(rng: random.Random) -> dict[str, list[str]]:
    """Return the prompts of every split; categories alternate."""
    columns: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    for category in CATEGORIES:
        left = rng.sample(motions(category), len(motions(category)))
        for split, many, count in zip(SPLITS, *DEALS[category]):
            chosen, left = left[:many], left[many:]
            columns[split].append(choose(chosen, count, rng))
    return {
        split: [prompt for turn in zip_longest(*lists) for prompt in turn if prompt is not None]
        for split, lists in columns.items()
    }


def main() -> None:
    folder = Path("data/prompts/scenes-video")
    folder.mkdir(parents=True, exist_ok=True)
    for split, prompts in deal(random.Random(SEED)).items():
        for prompt in prompts:
            parse_motion(prompt)
        (folder / f"{split}.txt").write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
