"""Dynamic degree: the share of clips in which something moves at all; a still image scores well on the other measures.

Source: VBench (Huang et al., arXiv 2311.17982), section 3.2, with the objects' own motion for optical flow.
"""

from __future__ import annotations

import numpy as np

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, mean
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric

MOVES = 1.0
"""Pixels per frame; half of what an object of the benchmark moves."""


def dynamic(tracks: np.ndarray) -> np.ndarray:
    """Whether the fastest object of ``tracks`` [N, K, T, 2] (NaN where not seen) moves, bool ``[N]``.

    Its speed is the mean over the pairs of frames in which it is seen.
    """
    steps = np.linalg.norm(np.diff(tracks, axis=2), axis=-1)
    known = ~np.isnan(steps)
    speed = np.where(known, steps, 0.0).sum(-1) / np.maximum(known.sum(-1), 1)
    moving: np.ndarray = speed.max(-1, initial=0.0) >= MOVES
    return moving


def dynamic_degree_estimate(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Share of the clips in which something moves."""
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
