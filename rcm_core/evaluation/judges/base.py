"""What measures a generator: an independent network that never saw what one made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rcm_core.errors import InputError


class Judge(Protocol):
    """Looks at decoded pixels in [0, 1], ``[N, C, T, H, W]``, where they are made, and judges by what it keeps of them;
    can be pickled.
    """

    @property
    def name(self) -> str:
        """What it is, in some words."""
        ...

    @property
    def categories(self) -> tuple[str, ...]:
        """Kinds of prompts whose accuracies are reported one by one; none if all prompts are of one kind."""
        ...

    @property
    def pixels(self) -> bool:
        """Whether what it keeps are the pixels themselves: samples are small."""
        ...

    @property
    def finding(self) -> str:
        """What it does if a sample is right, for sentences: "the judge ..."."""
        ...

    @property
    def digest(self) -> str:
        """sha256 of what it judges with."""
        ...

    def category(self, prompt: str) -> str:
        """One of ``categories``, or "" if there are none; InputError if the prompt cannot be read."""
        ...

    def look(self, pixels: Tensor) -> Tensor:
        """What it needs of samples to judge them, ``[N, ...]`` on the CPU."""
        ...

    def correct(self, looked: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """Whether it sees in each sample what its prompt asks for, bool ``[N]``."""
        ...

    def features(self, looked: Tensor) -> np.ndarray:
        """Float64 ``[N, D]``: the space of the Frechet distance, precision, recall and the Vendi score."""
        ...

    def observe(self, looked: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """What it sees besides, for further metrics; named as in ``evaluation.metric.INPUTS``."""
        ...

    def real_features(self, split: str) -> np.ndarray | None:
        """Features of the real images of ``split``, float64 ``[N, D]``; None if the benchmark has none."""
        ...

    def accuracy_on(self, split: str) -> float:
        """Share of the real images of ``split`` that it judges rightly."""
        ...


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, as before outside: sums then run in one order on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def unit_range(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as pixels in [0, 1]."""
    return (pixels + 1) / 2


def refuse_unpaired(pixels: Tensor, prompts: Sequence[object]) -> None:
    """InputError unless there is a prompt (or what was read from it) for every sample."""
    if len(pixels) != len(prompts):
        raise InputError(
            f"{len(pixels)} samples came with {len(prompts)} prompts; give one prompt per sample"
        )


class Pixels:
    """What judges of small samples have in common: they keep the pixels, and see in them what was asked for."""

    pixels = True
    finding = "sees what the prompt asked for"

    def look(self, pixels: Tensor) -> Tensor:
        """The pixels themselves."""
        return pixels


def refuse_pixels(pixels: Tensor, shape: torch.Size) -> None:
    """InputError unless ``pixels`` are samples of ``shape`` (channels, frames, height, width) in [0, 1]."""
    if pixels.shape[1:] != shape:
        raise InputError(
            f"the judge was given samples of shape {list(pixels.shape[1:])} and knows {list(shape)}"
            " (channels, frames, height, width); score samples of the same benchmark"
        )
    refuse_range(pixels)


def refuse_range(pixels: Tensor) -> None:
    """InputError unless ``pixels`` are in [0, 1]."""
    # written so that a NaN fails too; the slack is the rounding of a decoder that clamps
    if not bool(((pixels >= -1e-3) & (pixels <= 1 + 1e-3)).all()):
        raise InputError("the judge was given values outside [0, 1] or not finite; give it decoded pixels")
