"""Writes data/prompts: every phrasing with every digit, dealt to disjoint splits; run from the project root.

Every word and every phrasing occurs in train, so validation and test hold unseen combinations of seen parts;
each digit (and direction) has 14 prompts in train, 3 in validation and 3 in test.
"""

from __future__ import annotations

import random
from pathlib import Path

SEED = 7
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ANY_FORM = (
    "the digit {}",
    "a photo of the number {}",
    "a scan of the digit {}",
    "an image showing {}",
    "the number {} written by hand",
    "a small picture of the number {}",
    "somebody wrote the digit {}",
    "the figure {} on white paper",
)
WORD_ONLY = ("a handwritten {}", "number {} in neat handwriting")
NUMERAL_ONLY = ("handwritten digit {}", "numeral {} drawn with a pen")
MOTIONS = (
    "the digit {} moving {}",
    "a handwritten {} moving {}",
    "a clip of the number {} moving {}",
    "a video of the {} that moves {}",
    "the number {} travels to the {}",
    "a scan of the digit {} sliding {}",
    "somebody pushes the digit {} to the {}",
    "the figure {} drifts {} across the picture",
    "a short film of the number {} going {}",
    "handwritten digit {} on its way {}",
)


def digit_prompts() -> list[list[str]]:
    """``[phrasing][digit]``: 20 phrasings of 10 digits."""
    words = [[t.format(word) for word in WORDS] for t in ANY_FORM + WORD_ONLY]
    numerals = [[t.format(digit) for digit in range(10)] for t in ANY_FORM + NUMERAL_ONLY]
    return words + numerals


def motion_prompts() -> list[list[str]]:
    """``[phrasing][2 * digit + direction]``: 20 phrasings of 20 motions."""
    forms = (WORDS, range(10))
    return [
        [t.format(name, way) for name in names for way in ("right", "left")]
        for names in forms
        for t in MOTIONS
    ]


def deal(table: list[list[str]], rng: random.Random) -> dict[str, list[str]]:
    """20 phrasings x labels to splits 14 : 3 : 3 for every label, balanced over phrasings (Latin square)."""
    labels = len(table[0])
    phrasings = rng.sample(range(20), 20)
    order = rng.sample(range(labels), labels)
    dealt: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for label in range(labels):
        for phrasing in range(20):
            turn = (phrasings[phrasing] + 20 // labels * order[label]) % 20
            split = "validation" if turn < 3 else "test" if turn < 6 else "train"
            dealt[split].append(table[phrasing][label])
    return dealt


def main() -> None:
    for name, table in (("digits", digit_prompts()), ("moving-digits", motion_prompts())):
        for split, prompts in deal(table, random.Random(SEED)).items():
            path = Path("data/prompts") / name / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
