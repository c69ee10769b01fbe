"""Diversity within a prompt: how much samples of one prompt differ; higher is more diverse.

The Vendi score is the effective number of distinct samples: the exponential of the entropy of the
eigenvalues of K/n, with K the cosine kernel of the features. n samples with orthogonal features score n,
n copies of one sample score 1.

Source: Friedman and Dieng, "The Vendi score", arXiv 2210.02410.
"""

from __future__ import annotations

import numpy as np
import torch

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, counts, estimate
from rcm_core.evaluation.metric import NO_BOUND, Inputs, Metric


def vendi(groups: np.ndarray) -> float:
    """Return the mean over prompts of the Vendi score of the features ``groups`` [P, S, D]."""
    ones = np.ones((1, *groups.shape[:2]), dtype=np.int64)
    return float(vendi_replicates(groups, ones)[0])


def vendi_replicates(groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the score of ``R`` resamples with ``counts[r, p, s]`` copies of sample (p, s); float64 ``[R]``.

    c copies of a sample are one sample of weight c/S on both sides of the kernel: the eigenvalues are the same.
    """
    unit = torch.nn.functional.normalize(torch.from_numpy(groups).double(), dim=-1)
    kernel = unit @ unit.transpose(1, 2)
    weights = torch.from_numpy(counts).double()
    roots = (weights / weights.sum(-1, keepdim=True)).sqrt()
    share = torch.linalg.eigvalsh(roots[..., :, None] * kernel * roots[..., None, :]).clamp_min(0)
    scores: np.ndarray = torch.special.entr(share).sum(-1).exp().mean(-1).numpy()
    return scores


def pairwise(groups: np.ndarray) -> float:
    """Return the mean over prompts of the mean RMS difference between two of the samples ``groups`` [P, S, D]."""
    ones = np.ones((1, *groups.shape[:2]), dtype=np.int64)
    return float(pairwise_replicates(groups, ones)[0])


def pairwise_replicates(groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the difference of ``R`` resamples, float64 ``[R]``; a sample and itself are no pair, two of its copies
    are a pair with difference 0.
    """
    points = torch.from_numpy(groups).double()
    distance = (
        torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / points.shape[-1] ** 0.5
    )
    weights = torch.from_numpy(counts).double()
    pairs = weights.sum(-1).square() - weights.square().sum(-1)
    total = torch.einsum("rps,pst,rpt->rp", weights, distance, weights)
    distances: np.ndarray = (total / pairs.clamp_min(1)).mean(-1).numpy()
    return distances


def diversity(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the Vendi score of the features; at most the number of samples per prompt."""
    groups = inputs["groups"]
    many, each = groups.shape[:2]
    return estimate(
        vendi(groups), vendi_replicates(groups, _draw_counts(groups, bootstrap)), many * each, (1.0, each)
    )


def pairwise_difference(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the RMS pixel difference between two samples of one prompt."""
    groups = inputs["group_pixels"]
    many, each = groups.shape[:2]
    spread = pairwise_replicates(groups, _draw_counts(groups, bootstrap))
    return estimate(pairwise(groups), spread, many * each, NO_BOUND)


def _draw_counts(groups: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """Return how often each sample occurs in each resample, int64 ``[R, P, S]``; every prompt keeps S samples."""
    many, each = groups.shape[:2]
    return np.stack([counts(each, bootstrap, "diversity", i) for i in range(many)], axis=1)


METRICS = (
    Metric(
        name="diversity",
        title="Diversity",
        note="Vendi score per prompt",
        superlative="most diverse",
        higher_is_better=True,
        bounds=(1.0, float("inf")),
        needs=frozenset({"groups"}),
        estimate=diversity,
        place=60,
        selects=False,
        shown=frozenset({"results", "card", "comparison", "advice"}),
    ),
    Metric(
        name="pairwise",
        title="Pairwise difference",
        higher_is_better=True,
        bounds=NO_BOUND,
        needs=frozenset({"group_pixels"}),
        estimate=pairwise_difference,
        place=70,
        selects=False,
        shown=frozenset(),
    ),
)
