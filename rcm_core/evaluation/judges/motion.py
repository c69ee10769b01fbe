"""The judge of ``scenes_video``: runs the detector on every frame and tracks the detected digits.

A clip is correct if most of its frames show exactly the requested things and each of them moves as requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcm_core.evaluation.judges.base import Pixels, refuse_pixels, refuse_unpaired, unit_range
from rcm_core.evaluation.judges.detector import DIGEST, FEATURES, Detector, detect, run
from rcm_core.evaluation.judges.tracking import follow, shows
from rcm_core.evaluation.metrics.motion_following import following
from rcm_core.protocols import Benchmark
from rcm_core.rng import generator
from rcm_core.scenes.compose import SIZE
from rcm_core.scenes.motion import DIRECTIONS, FRAMES, Motion, parse_motion

MOST = 2
ENOUGH = 0.75
"""Minimum share of the frames that show exactly the requested things."""


class Watched(NamedTuple):
    """Observations of N clips."""

    shown: np.ndarray
    """Share of the frames that show exactly the requested things, ``[N]``."""
    tracks: np.ndarray
    """Centres of the requested things in every frame, ``[N, 2, T, 2]``."""
    directions: np.ndarray
    """Requested directions, ``[N, 2, 2]``."""
    subjects: np.ndarray
    """Features of the subject in every frame, ``[N, T, 64]``."""


class MotionJudge(Pixels):
    """A ``base.Judge``; every method takes pixels in [0, 1], ``[N, 3, 8, 32, 32]``."""

    name = "detector"
    digest = DIGEST

    def __init__(self, detector: Detector, data: Benchmark) -> None:
        self._detector, self._data = detector, data
        self.categories = data.categories

    def category(self, prompt: str) -> str:
        """Return one of ``categories``; InputError if the prompt cannot be parsed."""
        return parse_motion(prompt).category

    def correct(self, pixels: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """Return whether each clip shows what its prompt asks for, moving as requested, bool ``[N]``."""
        return self.match_requests(pixels, [parse_motion(prompt) for prompt in prompts])

    def match_requests(self, pixels: Tensor, motions: Sequence[Motion]) -> np.ndarray:
        """Return ``correct`` for motions instead of prompts."""
        seen = self.watch(pixels, motions)
        right: np.ndarray = (seen.shown >= ENOUGH) & following(seen.tracks, seen.directions)
        return right

    def observe(self, pixels: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return subjects, tracks and requested directions for the VBench-like metrics."""
        seen = self.watch(pixels, [parse_motion(prompt) for prompt in prompts])
        return {"subjects": seen.subjects, "tracks": seen.tracks, "directions": seen.directions}

    def watch(self, pixels: Tensor, motions: Sequence[Motion]) -> Watched:
        """Run the detector on every frame and track the things that ``motions`` name."""
        refuse_unpaired(pixels, motions)
        hidden, heads = run(self._detector, _frames(pixels))
        detected = detect(heads)
        clips = [detected[i : i + FRAMES] for i in range(0, len(detected), FRAMES)]
        shown = [np.mean([shows(m.things, seen) for seen in clip]) for m, clip in zip(motions, clips)]
        tracks = [follow(m.things, clip, MOST) for m, clip in zip(motions, clips)]
        directions = np.zeros((len(motions), MOST, 2))
        for i, motion in enumerate(motions):
            directions[i, : len(motion.directions)] = [DIRECTIONS[way] for way in motion.directions]
        weights = heads["object"].sigmoid()
        subjects = (hidden * weights).sum((2, 3)) / (weights.sum((2, 3)) + 1e-6)
        features = subjects.double().numpy().reshape(-1, FRAMES, FEATURES)
        return Watched(np.array(shown), np.array(tracks).reshape(-1, MOST, FRAMES, 2), directions, features)

    def features(self, pixels: Tensor) -> np.ndarray:
        """Return features of a clip's content and motion, float64 ``[N, 64]``.

        They are a fixed random projection of the hidden features' mean and of the change of their first moments from
        the first frame to the last.
        """
        flat = run(self._detector, _frames(pixels))[0].double()
        hidden = flat.reshape(-1, FRAMES, *flat.shape[1:])
        middle = torch.linspace(-1, 1, hidden.shape[-1], dtype=torch.float64)
        moments = [(hidden * middle).mean((3, 4)), (hidden * middle[:, None]).mean((3, 4))]
        parts = [hidden.mean((1, 3, 4)), *(moment[:, -1] - moment[:, 0] for moment in moments)]
        mixed = torch.randn(
            3 * FEATURES, FEATURES, generator=generator("motion features"), dtype=torch.float64
        )
        projected: np.ndarray = (torch.cat(parts, 1) @ mixed / (3 * FEATURES) ** 0.5).numpy()
        return projected

    def real_features(self, split: str) -> np.ndarray:
        """Return features of real clips of ``split``, float64 ``[N, 64]``."""
        return self.features(unit_range(self._data.compose_split(split)[0]))

    def accuracy_on(self, split: str) -> float:
        """Return the accuracy on the real clips of ``split``."""
        pixels, motions = self._data.compose_split(split)
        return float(self.match_requests(unit_range(pixels), motions).mean())


def _frames(pixels: Tensor) -> Tensor:
    """Return the frames, ``[N * T, 3, H, W]`` in [-1, 1]."""
    refuse_pixels(pixels, torch.Size((3, FRAMES, SIZE, SIZE)))
    return (2 * pixels.float().cpu() - 1).transpose(1, 2).flatten(0, 1)
