"""Judges: independent networks, never trained on generated samples, that score a benchmark's samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rcm_core.errors import InputError


class Judge(Protocol):
    """A judge of decoded pixels in [0, 1], ``[N, C, T, H, W]``. It can be pickled.

    ``look`` runs on the worker that decodes the samples; all other methods take its result.
    """

    @property
    def name(self) -> str:
        """A short description of the judge."""
        ...

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories of prompts with separate accuracies; empty if the benchmark has only one kind of prompt."""
        ...

    @property
    def pixels(self) -> bool:
        """True if ``look`` returns the pixels themselves, as for small samples."""
        ...

    @property
    def finding(self) -> str:
        """The predicate of a correct sample, for sentences that begin with "the judge"."""
        ...

    @property
    def digest(self) -> str:
        """sha256 of the judge's weights."""
        ...

    def category(self, prompt: str) -> str:
        """Return one of ``categories``, or "" if they are empty; InputError if the prompt cannot be parsed."""
        ...

    def look(self, pixels: Tensor) -> Tensor:
        """Reduce samples to the tensor that the other methods take, ``[N, ...]`` on the CPU."""
        ...

    def correct(self, looked: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """Return whether each sample shows what its prompt asks for, bool ``[N]``."""
        ...

    def features(self, looked: Tensor) -> np.ndarray:
        """Return float64 ``[N, D]``: the space of the Frechet distance, precision, recall and the Vendi score."""
        ...

    def observe(self, looked: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the inputs of further metrics, named as in ``evaluation.metric.INPUTS``."""
        ...

    def real_features(self, split: str) -> np.ndarray | None:
        """Return features of the real images of ``split``, float64 ``[N, D]``; None if the benchmark has none."""
        ...

    def accuracy_on(self, split: str) -> float:
        """Return the judge's accuracy on the real images of ``split``."""
        ...


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block on one torch thread, so that the order of sums does not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def unit_range(pixels: Tensor) -> Tensor:
    """Convert pixels in [-1, 1] to [0, 1]."""
    return (pixels + 1) / 2


def refuse_unpaired(pixels: Tensor, prompts: Sequence[object]) -> None:
    """Raise InputError unless every sample has one prompt or parsed prompt."""
    if len(pixels) != len(prompts):
        raise InputError(
            f"the judge got {len(pixels)} samples and {len(prompts)} prompts; pass one prompt per sample"
        )


class Pixels:
    """Base of judges for small samples: ``look`` keeps the pixels."""

    pixels = True
    finding = "sees what the prompt asked for"

    def look(self, pixels: Tensor) -> Tensor:
        """Return the pixels themselves."""
        return pixels


def refuse_pixels(pixels: Tensor, shape: torch.Size) -> None:
    """Raise InputError unless ``pixels`` are samples of ``shape`` (channels, frames, height, width) in [0, 1]."""
    if pixels.shape[1:] != shape:
        raise InputError(
            f"the judge got samples of shape {list(pixels.shape[1:])}, but expects {list(shape)}"
            " (channels, frames, height, width); score samples of the same benchmark"
        )
    refuse_range(pixels)


def refuse_range(pixels: Tensor) -> None:
    """Raise InputError unless ``pixels`` are in [0, 1]."""
    # the condition fails for NaN too; the tolerance covers the rounding of a clamping decoder
    if not bool(((pixels >= -1e-3) & (pixels <= 1 + 1e-3)).all()):
        raise InputError("the judge got values that are not finite or outside [0, 1]; pass decoded pixels")
