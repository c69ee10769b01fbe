"""What measures a generator: an independent network that never saw what one made. One judge for every benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.registry import find


class Judge(Protocol):
    """Takes decoded pixels in [0, 1], ``[N, C, T, H, W]``; can be pickled."""

    name: str
    """What it is, in a word."""

    categories: tuple[str, ...]
    """Kinds of prompts whose accuracies are reported one by one; none if all prompts are of one kind."""

    @property
    def digest(self) -> str:
        """sha256 of what it judges with."""
        ...

    def category(self, prompt: str) -> str:
        """One of ``categories``, or "" if there are none; InputError if the prompt cannot be read."""
        ...

    def correct(self, pixels: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """Whether it sees in each sample what its prompt asks for, bool ``[N]``."""
        ...

    def features(self, pixels: Tensor) -> np.ndarray:
        """Float64 ``[N, 64]``: the space of the Frechet distance, precision, recall and the Vendi score."""
        ...

    def measures(self, pixels: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """What else the benchmark measures of every sample, by name, float64 ``[N]`` in [0, 1]; higher is better."""
        ...

    def real_features(self, split: str) -> np.ndarray:
        """Features of the real images of ``split``, float64 ``[N, 64]``."""
        ...

    def accuracy_on(self, split: str) -> float:
        """Share of the real images of ``split`` that it judges rightly."""
        ...


def judge_for(data: str) -> Judge:
    """The judge of the benchmark ``rcm_core/data/<data>.py``, always with the same weights.

    InputError for an unknown benchmark.
    """
    from rcm_core.evaluation.classifier import trained
    from rcm_core.evaluation.detector import load_detector
    from rcm_core.evaluation.motion_judge import MotionJudge
    from rcm_core.evaluation.scene_judge import SceneJudge

    source: Any = find("data", data)  # a module
    match getattr(source, "judge", "classifier"):
        case "scenes":
            return SceneJudge(load_detector(), source)
        case "motion":
            return MotionJudge(load_detector(), source)
    return trained(data)


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


def refuse_pixels(pixels: Tensor, shape: torch.Size) -> None:
    """InputError unless ``pixels`` are samples of ``shape`` (channels, frames, height, width) in [0, 1]."""
    if pixels.shape[1:] != shape:
        raise InputError(
            f"the judge was given samples of shape {list(pixels.shape[1:])} and knows {list(shape)}"
            " (channels, frames, height, width); score samples of the same benchmark"
        )
    # written so that a NaN fails too; the slack is the rounding of a decoder that clamps
    if not bool(((pixels >= -1e-3) & (pixels <= 1 + 1e-3)).all()):
        raise InputError("the judge was given values outside [0, 1] or not finite; give it decoded pixels")
