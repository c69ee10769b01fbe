"""Subject consistency of clips: the similarity of the subject between frames; at best 1.

Source: VBench (Huang et al., arXiv 2311.17982), section 3.2, with the judge's subject features instead of DINO's.
"""

from __future__ import annotations

import numpy as np

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, mean
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric


def subject_consistency(features: np.ndarray) -> np.ndarray:
    """Return the consistency of ``features`` [N, T >= 2, D], float64 ``[N]``.

    It is the mean, over all frames except the first, of (cosine to the first + cosine to the previous) / 2. A frame
    without features (all zero) has cosine 0.
    """
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    unit = np.divide(features, norms, out=np.zeros_like(features, dtype=np.float64), where=norms > 0)
    first = (unit[:, 1:] * unit[:, :1]).sum(-1)
    before = (unit[:, 1:] * unit[:, :-1]).sum(-1)
    scores: np.ndarray = ((first + before) / 2).mean(-1)
    return scores


def subject_consistency_estimate(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the mean over the clips."""
    return mean(
        subject_consistency(inputs["subjects"]).clip(0, 1),
        bootstrap,
        "subject_consistency",
        bounds=PROPORTION,
    )


METRICS = (
    Metric(
        name="subject_consistency",
        title="Subject consistency",
        higher_is_better=True,
        bounds=PROPORTION,
        needs=frozenset({"subjects"}),
        estimate=subject_consistency_estimate,
        place=80,
        selects=False,
        shown=frozenset({"measures", "comparison"}),
    ),
)
