"""Improved precision and recall: the share of one set in the other's manifold; higher is better, at most 1.

A manifold is the union of balls around a set's points, each as wide as the distance to the k-th nearest
other point. Precision: share of samples inside the real manifold (fidelity). Recall: share of real images
inside the samples' manifold (coverage).

Source: Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models", arXiv
1904.06991.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, estimate, halves, share
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric

NEIGHBOURS = 5
SHORTLIST = 64
"""Number of nearest neighbours stored per point: a random half has fewer than ``NEIGHBOURS`` of 64 with probability
4e-13.
"""


def precise(samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return which samples lie inside the manifold of ``reference``, bool ``[N]``."""
    fixed = _check(reference)
    # column 0 is the point itself
    radius = _distances(fixed, fixed).topk(NEIGHBOURS + 1, largest=False).values[:, -1]
    inside: np.ndarray = (_distances(_check(samples), fixed) <= radius).any(1).numpy()
    return inside


def recall_replicates(samples: np.ndarray, reference: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the recall of ``R`` subsets of ``samples``, the rows of ``chosen``, bool [R, N]; float64 ``[R]``."""
    points = _check(samples)
    shortlist = _distances(points, points).topk(min(SHORTLIST + 1, len(points)), largest=False)
    nearest, distance = shortlist.indices[:, 1:], shortlist.values[:, 1:]
    to_real = _distances(_check(reference), points)
    return np.array([_recall(row, nearest, distance, to_real) for row in torch.from_numpy(chosen)])


def _recall(chosen: Tensor, nearest: Tensor, distance: Tensor, to_real: Tensor) -> float:
    rank = chosen[nearest[chosen]].cumsum(1)
    assert bool((rank[:, -1] >= NEIGHBOURS).all()), (
        "SHORTLIST neighbours always hold NEIGHBOURS of a random half"
    )
    column = (rank >= NEIGHBOURS).int().argmax(1, keepdim=True)
    radius = distance[chosen].gather(1, column)[:, 0]
    return float((to_real[:, chosen] <= radius).any(1).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # the matmul form loses half the digits of small distances, which decide here
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _check(features: np.ndarray) -> Tensor:
    if len(features) < 4 * NEIGHBOURS:
        raise InputError(
            f"precision and recall got {len(features)} samples, too few for {NEIGHBOURS} neighbours of each;"
            f" use at least {4 * NEIGHBOURS}"
        )
    return torch.from_numpy(features).double()


def precision(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the share of samples inside the real manifold."""
    return share(precise(inputs["features"], inputs["real"]), bootstrap, "precision")


def recall(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the share of real images inside the samples' manifold; resamples are halves, without duplicates."""
    features, real = inputs["features"], inputs["real"]
    everything = np.ones((1, len(features)), dtype=bool)
    value = float(recall_replicates(features, real, everything)[0])
    spread = recall_replicates(features, real, halves(len(features), bootstrap, "recall"))
    return estimate(value, spread, len(features), PROPORTION)


METRICS = (
    Metric(
        name="precision",
        title="Precision",
        note="inside the real manifold",
        higher_is_better=True,
        bounds=PROPORTION,
        needs=frozenset({"features", "real"}),
        estimate=precision,
        place=40,
        selects=False,
    ),
    Metric(
        name="recall",
        title="Recall",
        note="real manifold covered",
        higher_is_better=True,
        bounds=PROPORTION,
        needs=frozenset({"features", "real"}),
        estimate=recall,
        place=50,
        selects=False,
    ),
)
