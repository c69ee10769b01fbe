"""Writes data/prompts/open: what people ask image and video models for, composed of parts; run from the project root.

A prompt is a medium, a scene and a light. A scene is a subject that does something somewhere; or it asks for what
models get wrong: counts, colours of two things, sides. Splits share no scene.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

SEED = 7
SIZES = {"train": 4096, "validation": 128, "test": 256}
SUBJECTS = (
    "an old fisherman", "a girl in a yellow raincoat", "a jazz trumpeter", "a tired nurse", "two children",
    "a blacksmith",
    "a woman with silver hair", "a chess player", "a street juggler", "a farmer", "a diver",
    "a ballet dancer", "a red fox",
    "a snowy owl", "a grey cat", "a herd of goats", "a golden retriever", "an octopus", "a white horse",
    "a hedgehog",
    "a swarm of bees", "a sea turtle", "an elephant calf", "a robin", "a small robot", "a steam locomotive",
    "a sailing boat",
    "a vintage bicycle", "a hot-air balloon", "a yellow tram", "a lighthouse", "a paper kite",
)  # fmt: skip
DOINGS = {
    "an old fisherman": "mending a net", "a girl in a yellow raincoat": "jumping over a puddle",
    "a jazz trumpeter": "playing with closed eyes", "a tired nurse": "drinking coffee",
    "two children": "building a den",
    "a blacksmith": "hammering glowing iron", "a woman with silver hair": "reading a letter",
    "a chess player": "thinking about a move", "a street juggler": "throwing burning torches",
    "a farmer": "carrying a lamb",
    "a diver": "holding a lantern", "a ballet dancer": "turning on one foot", "a red fox": "sniffing the air",
    "a snowy owl": "spreading its wings", "a grey cat": "stretching", "a herd of goats": "crossing the path",
    "a golden retriever": "shaking off water", "an octopus": "opening a jar", "a white horse": "galloping",
    "a hedgehog": "looking at a mushroom", "a swarm of bees": "leaving the hive",
    "a sea turtle": "gliding past",
    "an elephant calf": "splashing water", "a robin": "singing on a post",
    "a small robot": "watering a plant",
    "a steam locomotive": "letting off steam", "a sailing boat": "leaning in the wind",
    "a vintage bicycle": "leaning against a wall", "a hot-air balloon": "taking off",
    "a yellow tram": "turning a corner",
    "a lighthouse": "sending out its beam", "a paper kite": "pulling at its string",
}  # fmt: skip
PLACES = (
    "in a harbour", "on a mountain pass", "in a narrow alley", "beside a frozen lake", "in a greenhouse",
    "on a market square",
    "in a library", "under a railway bridge", "in a field of sunflowers", "on a pebble beach",
    "in a birch forest",
    "in front of a bakery", "on a rooftop", "in the desert", "beside a waterfall", "in a ruined castle",
)  # fmt: skip
MEDIA = (
    "a photograph of {}", "{}", "an oil painting of {}", "a watercolour of {}", "a film still of {}",
    "a pencil drawing of {}",
    "a picture from a children's book of {}", "a wide shot of {}", "a close-up of {}", "a woodcut of {}",
)  # fmt: skip
LIGHTS = (
    "", ", at dawn", ", in heavy rain", ", in the light of street lamps", ", in fog",
    ", under a clear noon sky",
    ", in the last sun", ", by candlelight", ", in falling snow", ", under northern lights",
)  # fmt: skip
THINGS = (
    "apple",
    "cup",
    "clock",
    "chair",
    "umbrella",
    "book",
    "guitar",
    "vase",
    "suitcase",
    "lamp",
    "teapot",
    "balloon",
)
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
COUNTS = ("two", "three", "four", "five", "six")
SIDES = ("to the left of", "to the right of", "on top of", "underneath", "behind", "in front of")


def scenes() -> list[str]:
    """Return all combinations in a fixed order."""
    acted = [f"{subject} {DOINGS[subject]} {place}" for subject, place in product(SUBJECTS, PLACES)]
    counted = [f"{count} {thing}s on a table" for count, thing in product(COUNTS, THINGS)]
    pairs = [(a, b) for a, b in product(THINGS, THINGS) if a != b]
    placed = [f"{article(a)} {side} {article(b)}" for side, (a, b) in product(SIDES, pairs)]
    hues = [(c, d) for c, d in product(COLOURS, COLOURS) if c != d]
    coloured = [
        f"{article(f'{hues[i % len(hues)][0]} {a}')} and {article(f'{hues[i % len(hues)][1]} {b}')}"
        for i, (a, b) in enumerate(pairs)
    ]
    return [*acted, *counted, *placed, *coloured]


def article(noun: str) -> str:
    """ "an apple", "a cup"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def deal(rng: random.Random) -> dict[str, list[str]]:
    """Return prompts by split; scenes are divided first, so that no two splits share one."""
    left = scenes()
    rng.shuffle(left)
    dealt: dict[str, list[str]] = {}
    for split in ("test", "validation", "train"):
        own = left if split == "train" else [left.pop() for _ in range(SIZES[split])]
        seen: dict[str, None] = {}
        while len(seen) < SIZES[split]:
            for scene in own[: SIZES[split] - len(seen)]:
                seen[rng.choice(MEDIA).format(scene) + rng.choice(LIGHTS)] = None
        dealt[split] = list(seen)
    return dealt


def main() -> None:
    for split, prompts in deal(random.Random(SEED)).items():
        path = Path("data/prompts/open") / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
