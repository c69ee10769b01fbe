"""Motion smoothness of clips: how well neighbouring frames predict each frame; 1 at rest and in uniform motion.

VBench (Huang et al., arXiv 2311.17982) drops every other frame and reconstructs it with an interpolation network. Here
the centres of the objects are known, so the interpolation is the mean of their previous and next positions:

    e = mean |x_t - (x_{t-1} + x_{t+1}) / 2| in pixels,    score 1 / (1 + e)

The detector locates centres to about 0.3 pixels, so real clips in uniform motion score 0.77, the practical maximum.
"""

from __future__ import annotations

import numpy as np

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, mean
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric


def motion_smoothness(tracks: np.ndarray) -> np.ndarray:
    """Return the smoothness of ``tracks`` [N, K, T, 2], the centres of K objects in T frames; float64 ``[N]``.

    NaN, for an object that is not detected, is ignored. A clip without an object in three consecutive frames scores 0.
    """
    errors = np.linalg.norm(tracks[:, :, 1:-1] - (tracks[:, :, :-2] + tracks[:, :, 2:]) / 2, axis=-1)
    known = ~np.isnan(errors)
    count = known.sum((1, 2))
    total = np.where(known, errors, 0.0).sum((1, 2))
    return np.where(count > 0, 1 / (1 + total / np.maximum(count, 1)), 0.0)


def motion_smoothness_estimate(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the mean over the clips."""
    return mean(motion_smoothness(inputs["tracks"]), bootstrap, "motion_smoothness", bounds=PROPORTION)


METRICS = (
    Metric(
        name="motion_smoothness",
        title="Motion smoothness",
        higher_is_better=True,
        bounds=PROPORTION,
        needs=frozenset({"tracks"}),
        estimate=motion_smoothness_estimate,
        place=90,
        selects=False,
        shown=frozenset({"measures", "comparison"}),
    ),
)
