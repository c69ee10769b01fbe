"""Real handwritten digits: the 1,797 scans of 8x8 pixels in scikit-learn, in fixed splits.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
(1998).
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rcm_core.errors import InputError, nearest

SPLIT_SIZES = {"train": 1197, "validation": 200, "test": 400}
SPLIT_SEED = 0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = {name: digit for digit, word in enumerate(WORDS) for name in (word, str(digit))}


@lru_cache(maxsize=1)
def _all_splits() -> dict[str, tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    values, digits = load_digits(return_X_y=True)
    rows = np.arange(len(digits))
    kept, test = train_test_split(
        rows, test_size=SPLIT_SIZES["test"], stratify=digits, random_state=SPLIT_SEED
    )
    train, validation = train_test_split(
        kept, test_size=SPLIT_SIZES["validation"], stratify=digits[kept], random_state=SPLIT_SEED
    )
    pixels = torch.from_numpy(values / 8 - 1).float().reshape(-1, 8, 8)
    labels = torch.from_numpy(digits).long()
    rows_of = {"train": train, "validation": validation, "test": test}
    return {name: (pixels[chosen], labels[chosen]) for name, chosen in rows_of.items()}


def scans(split: str) -> tuple[Tensor, Tensor]:
    """Return pixels in [-1, 1], float32 ``[N, 8, 8]``, and digits, int64 ``[N]``, of one split; fresh tensors.

    The splits are disjoint, stratified by digit, and the same in every process. InputError for an unknown split.
    """
    if split not in SPLIT_SIZES:
        raise InputError(
            f"unknown split {split!r}{nearest(split, SPLIT_SIZES)}; use one of {', '.join(SPLIT_SIZES)}"
        )
    pixels, labels = _all_splits()[split]
    return pixels.clone(), labels.clone()


def named_digit(prompt: str) -> int:
    """Return the one digit that ``prompt`` names, as a word or a numeral; InputError if it names none or several."""
    words = re.findall(r"[a-z]+|\d+", prompt.lower())
    named = sorted({NAMES[word] for word in words if word in NAMES})
    if len(named) != 1:
        found = f"names {len(named)} digits ({', '.join(map(str, named))})" if named else "names no digit"
        raise InputError(f"the prompt {prompt!r} {found}; name exactly one of 0-9, as 'a handwritten seven'")
    return named[0]
