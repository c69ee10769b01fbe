"""The judge of ``scenes``: compares the detector's output with the prompt.

A sample is correct if the detector finds exactly the requested things, with the requested colours and positions.
That is stricter than GenEval (arXiv 2310.11513), which allows further objects outside its counting category.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from rcm_core.evaluation.judges.base import Pixels, refuse_pixels, refuse_unpaired, unit_range
from rcm_core.evaluation.judges.detector import DIGEST, Detector, Seen, detect, run
from rcm_core.evaluation.judges.tracking import matches, shows
from rcm_core.protocols import Benchmark
from rcm_core.scenes.compose import SIZE
from rcm_core.scenes.request import Request, parse

MARGIN = 6.0
"""Minimum distance in pixels for one object to count as left of, or above, another."""


def satisfies(request: Request, seen: Sequence[Seen]) -> bool:
    """Return whether ``seen`` is what ``request`` asks for and nothing else."""
    if not shows(request.things, seen):
        return False
    orders = (order for order in permutations(seen) if all(map(matches, request.things, order)))
    return not request.relation or any(beside(request.relation, *order) for order in orders)


def beside(relation: str, first: Seen, second: Seen) -> bool:
    """Return whether ``first`` is more to the left of (or above) ``second`` than above or below (beside) it."""
    right, down = second.x - first.x, second.y - first.y
    along, across = (right, down) if relation == "left" else (down, right)
    return along >= MARGIN and along > abs(across)


class SceneJudge(Pixels):
    """A ``base.Judge``; every method takes pixels in [0, 1], ``[N, 3, 1, 32, 32]``."""

    name = "detector"
    digest = DIGEST

    def __init__(self, detector: Detector, data: Benchmark) -> None:
        self._detector, self._data = detector, data
        self.categories = data.categories

    def category(self, prompt: str) -> str:
        """Return one of ``categories``; InputError if the prompt cannot be parsed."""
        return parse(prompt).category

    def correct(self, pixels: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """Return whether each sample shows what its prompt asks for and nothing else, bool ``[N]``."""
        return self.match_requests(pixels, [parse(prompt) for prompt in prompts])

    def match_requests(self, pixels: Tensor, requests: Sequence[Request]) -> np.ndarray:
        """Return ``correct`` for requests instead of prompts."""
        refuse_unpaired(pixels, requests)
        seen = detect(run(self._detector, _frames(pixels))[1])
        return np.array([satisfies(request, one) for request, one in zip(requests, seen)], dtype=bool)

    def observe(self, pixels: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Return no inputs of further metrics."""
        return {}

    def features(self, pixels: Tensor) -> np.ndarray:
        """Return the detector's hidden features, averaged over the canvas, float64 ``[N, 64]``."""
        hidden = run(self._detector, _frames(pixels))[0]
        return hidden.double().mean((2, 3)).numpy()

    def real_features(self, split: str) -> np.ndarray:
        """Return features of real scenes of ``split``, float64 ``[N, 64]``."""
        return self.features(unit_range(self._data.compose_split(split)[0]))

    def accuracy_on(self, split: str) -> float:
        """Return the accuracy on the real scenes of ``split``."""
        pixels, requests = self._data.compose_split(split)
        return float(self.match_requests(unit_range(pixels), requests).mean())


def _frames(pixels: Tensor) -> Tensor:
    refuse_pixels(pixels, torch.Size((3, 1, SIZE, SIZE)))
    return 2 * pixels[:, :, 0].float().cpu() - 1
