"""Motion following: whether every object moves in the direction that the prompt says.

VBench asks a captioner or a detector whether the prompt's relation holds (Huang et al., arXiv 2311.17982). This metric
compares the detected positions with the requested direction.
"""

from __future__ import annotations

import numpy as np

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, mean
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric

FAR = 6.0
"""Minimum displacement in pixels from the first to the last position; the benchmark's objects move 14."""


def following(tracks: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return whether the objects of ``tracks`` [N, K, T, 2] move along ``directions`` [N, K, 2], bool ``[N]``.

    Directions are unit steps in x or y, zero for an index of K without an object. Between the first and the last frame
    in which it is detected (NaN elsewhere) an object must move ``FAR`` pixels in its direction, and less to the side.
    """
    asked = np.abs(directions).sum(-1) > 0
    gone = _displacement(tracks)
    along = (gone * directions).sum(-1)
    across = np.abs(gone * directions[..., ::-1]).sum(-1)
    right = (along >= FAR) & (across < along)
    flags: np.ndarray = (right | ~asked).all(-1) & asked.any(-1)
    return flags


def _displacement(tracks: np.ndarray) -> np.ndarray:
    """Return last minus first known position, ``[N, K, 2]``; NaN, which matches no direction, if none is known."""
    known = ~np.isnan(tracks[..., 0])
    first, last = known.argmax(-1), known.shape[-1] - 1 - known[..., ::-1].argmax(-1)
    places = [np.take_along_axis(tracks, frame[..., None, None], axis=2)[:, :, 0] for frame in (first, last)]
    gone: np.ndarray = places[1] - places[0]
    return gone


def motion_following_estimate(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the share of the clips that move as requested."""
    return mean(
        following(inputs["tracks"], inputs["directions"]).astype(np.float64),
        bootstrap,
        "motion_following",
        bounds=PROPORTION,
    )


METRICS = (
    Metric(
        name="motion_following",
        title="Motion following",
        higher_is_better=True,
        bounds=PROPORTION,
        needs=frozenset({"tracks", "directions"}),
        estimate=motion_following_estimate,
        place=110,
        selects=False,
        shown=frozenset({"measures", "comparison"}),
    ),
)
