"""Writes data/prompts: every label in many phrasings, divided into disjoint splits; run from the project root.

A phrasing is a carrier, an ending and a subject that names the digit by word or by numeral. Every word occurs in
train, so validation and test hold unseen combinations of seen parts. Lines go round the labels, so that any first
part of a list asks for all of them equally often.
"""

from __future__ import annotations

import random
from itertools import chain, product
from pathlib import Path

SEED = 7
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SUBJECTS = (
    "a handwritten {}",
    "the digit {}",
    "the number {}",
    "the figure {}",
    "the numeral {}",
    "a single {}",
)
PICTURES = (
    "{}", "a photo of {}", "a scan of {}", "an image showing {}", "a small picture of {}", "a drawing of {}",
    "a sketch of {}",
)  # fmt: skip
PLACES = ("{}", "{} on white paper", "{} in neat handwriting", "{} in black ink", "{} in grey")
CLIPS = ("{}", "a clip of {}", "a video of {}", "a film of {}", "a recording of {}")
MOTIONS = (
    "{} moving WAY", "{} going WAY", "{} sliding WAY", "{} drifting WAY", "{} on its way WAY",
    "{} travelling to the WAY",
)  # fmt: skip


def phrasings(carriers: tuple[str, ...], endings: tuple[str, ...], digit: int) -> list[str]:
    """Return every phrasing for ``digit``, the plainest first."""
    return [
        carrier.format(ending.format(subject.format(name)))
        for carrier, ending, subject, name in product(carriers, endings, SUBJECTS, (WORDS[digit], str(digit)))
    ]


def digit_prompts() -> list[list[str]]:
    """Return prompts ``[digit][phrasing]``."""
    return [phrasings(PICTURES, PLACES, digit) for digit in range(10)]


def motion_prompts() -> list[list[str]]:
    """Return prompts ``[2 * digit + direction][phrasing]``."""
    return [
        phrasings(CLIPS, tuple(motion.replace("WAY", way) for motion in MOTIONS), digit)
        for digit in range(10)
        for way in ("right", "left")
    ]


def deal(table: list[list[str]], train: int, held_out: int, rng: random.Random) -> dict[str, list[str]]:
    """``train`` prompts of every label, and ``held_out`` for each of the other splits.

    The plainest phrasings, subjects alone, are for training: they are what a user tries first.
    """
    plain = 2 * len(SUBJECTS)
    mixed = [row[:plain] + rng.sample(row[plain:], len(row) - plain) for row in table]
    bounds = {
        "train": (0, train),
        "validation": (train, train + held_out),
        "test": (train + held_out, train + 2 * held_out),
    }
    return {
        split: list(chain.from_iterable(zip(*(row[first:last] for row in mixed))))
        for split, (first, last) in bounds.items()
    }


def main() -> None:
    rng = random.Random(SEED)
    for name, table, train, held_out in (
        ("digits", digit_prompts(), 100, 10),
        ("moving-digits", motion_prompts(), 50, 5),
    ):
        for split, prompts in deal(table, train, held_out, rng).items():
            path = Path("data/prompts") / name / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
