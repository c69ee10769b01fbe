"""Motion following: whether every object goes the way that the prompt says.

VBench asks a captioner or a detector whether the prompt's relation holds (Huang et al., arXiv 2311.17982); here the
detected places are compared with the direction asked for.
"""

from __future__ import annotations

import numpy as np

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, mean
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric

FAR = 6.0
"""Pixels from the first to the last place; an object of the benchmark goes 14."""


def following(tracks: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Whether the objects of ``tracks`` [N, K, T, 2] go along ``directions`` [N, K, 2], bool ``[N]``.

    Directions are unit steps in x or y, zero for a place of K without an object. An object must go ``FAR`` pixels its
    way between the first and the last frame in which it is seen (NaN where it is not), and less to the side.
    """
    asked = np.abs(directions).sum(-1) > 0
    gone = _displacement(tracks)
    along = (gone * directions).sum(-1)
    across = np.abs(gone * directions[..., ::-1]).sum(-1)
    right = (along >= FAR) & (across < along)
    flags: np.ndarray = (right | ~asked).all(-1) & asked.any(-1)
    return flags


def _displacement(tracks: np.ndarray) -> np.ndarray:
    """Last less first known place, ``[N, K, 2]``; NaN, which is no way at all, if there is none."""
    known = ~np.isnan(tracks[..., 0])
    first, last = known.argmax(-1), known.shape[-1] - 1 - known[..., ::-1].argmax(-1)
    places = [np.take_along_axis(tracks, frame[..., None, None], axis=2)[:, :, 0] for frame in (first, last)]
    gone: np.ndarray = places[1] - places[0]
    return gone


def motion_following_estimate(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Share of the clips that move as asked."""
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
