"""Dynamic degree: the share of clips with motion. A still clip scores well on the other video metrics.

Source: VBench (Huang et al., arXiv 2311.17982), section 3.2, with tracked objects instead of optical flow.
"""

from __future__ import annotations

import numpy as np

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, mean
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric

MOVES = 1.0
"""Minimum speed in pixels per frame; half the speed of the benchmark's objects."""


def dynamic(tracks: np.ndarray) -> np.ndarray:
    """Return whether the fastest object of ``tracks`` [N, K, T, 2] (NaN where not detected) moves, bool ``[N]``.

    Its speed is the mean over the pairs of frames in which it is detected.
    """
    steps = np.linalg.norm(np.diff(tracks, axis=2), axis=-1)
    known = ~np.isnan(steps)
    speed = np.where(known, steps, 0.0).sum(-1) / np.maximum(known.sum(-1), 1)
    moving: np.ndarray = speed.max(-1, initial=0.0) >= MOVES
    return moving


def dynamic_degree_estimate(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the share of the clips with motion."""
    return mean(dynamic(inputs["tracks"]).astype(np.float64), bootstrap, "dynamic_degree", bounds=PROPORTION)


METRICS = (
    Metric(
        name="dynamic_degree",
        title="Dynamic degree",
        higher_is_better=True,
        bounds=PROPORTION,
        needs=frozenset({"tracks"}),
        estimate=dynamic_degree_estimate,
        place=100,
        selects=False,
        shown=frozenset({"measures", "comparison"}),
    ),
)
