"""Frechet distance between two sets of features, each described by its mean and covariance.

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

Source: Dowson and Landau, "The Frechet distance between multivariate normal distributions", J. Multivariate
Analysis 12 (1982); with an Inception network's features this is FID (Heusel et al., arXiv 1706.08500). Lower
is better, 0 is best. Its expectation over finite sets exceeds the true value by O(1/n): compare only sets of
equal size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, counts, estimate
from rcm_core.evaluation.metric import NO_BOUND, Inputs, Metric


def frechet(samples: np.ndarray, reference: np.ndarray) -> float:
    """Return the distance d^2 between ``samples`` [N, D] and ``reference`` [M, D], in float64."""
    ones = np.ones((1, len(samples)), dtype=np.int64)
    return float(frechet_replicates(samples, reference, ones)[0])


def frechet_replicates(samples: np.ndarray, reference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the distance of ``R`` resamples with ``counts[r, n]`` copies of sample n; float64 ``[R]``."""
    fixed = torch.from_numpy(reference).double()
    centre = fixed.mean(0)
    covariance = torch.cov(fixed.T)
    root = _square_root(covariance)
    moved = torch.from_numpy(samples).double() - centre
    weights = torch.from_numpy(counts).double()
    means = weights @ moved / weights.sum(1, keepdim=True)
    covariances = torch.stack([_covariance(moved, mean, row) for mean, row in zip(means, weights)])
    overlap = _trace_of_root(root @ covariances @ root)
    traces = covariances.diagonal(dim1=1, dim2=2).sum(1) + covariance.trace()
    distances: np.ndarray = (means.square().sum(1) + traces - 2 * overlap).clamp_min(0).numpy()
    return distances


def _covariance(x: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    total = weight.sum()
    return ((x * weight[:, None]).T @ x - total * torch.outer(mean, mean)) / (total - 1)


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * _without_rounding(values).sqrt()) @ vectors.T
    return root


def _trace_of_root(products: Tensor) -> Tensor:
    """Return tr (C1 C2)^(1/2) from ``products`` C1^(1/2) C2 C1^(1/2), symmetric with the same eigenvalues."""
    return _without_rounding(torch.linalg.eigvalsh(products)).sqrt().sum(-1)


def _without_rounding(values: Tensor) -> Tensor:
    """Set eigenvalues within rounding error of zero to zero: the root of 1e-16 would be an error of 1e-8."""
    floor = values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    return torch.where(values > floor, values, torch.zeros_like(values))


def frechet_estimate(features: np.ndarray, reference: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Return the distance of ``features`` [N, D] to ``reference`` [M, D]; InputError if either has one sample."""
    if min(len(features), len(reference)) < 2:
        raise InputError(
            f"a Frechet distance of {len(features)} samples to {len(reference)} has no variance; set select.samples,"
            " evaluate.samples and trajectories.samples to at least 2"
        )
    resamples = counts(len(features), bootstrap, "frechet")
    replicates = frechet_replicates(features, reference, resamples)
    return estimate(frechet(features, reference), replicates, len(features), NO_BOUND)


def to_real(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the distance to held-out real images."""
    return frechet_estimate(inputs["features"], inputs["real"], bootstrap)


def to_teacher(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the distance to the teacher's own samples from other seeds; the floor is the teacher's distance, not 0."""
    return frechet_estimate(inputs["features"], inputs["teacher"], bootstrap)


METRICS = (
    Metric(
        name="frechet",
        title="Fréchet",
        note="to held-out real images",
        chart="Fréchet to real images",
        axis="Fréchet distance",
        column="Frechet to real",
        phrase="Frechet distance to real images",
        higher_is_better=False,
        bounds=NO_BOUND,
        needs=frozenset({"features", "real"}),
        estimate=to_real,
        place=10,
        shown=frozenset({"results", "card", "comparison", "advice"}),
    ),
    Metric(
        name="frechet_teacher",
        title="Fréchet",
        note="to {reference}",
        chart="Fréchet to {reference}",
        axis="Fréchet to teacher",
        column="Frechet to teacher",
        phrase="Frechet distance to the teacher's samples",
        higher_is_better=False,
        bounds=NO_BOUND,
        needs=frozenset({"features", "teacher"}),
        estimate=to_teacher,
        place=20,
        shown=frozenset({"results", "card", "comparison", "advice"}),
        stands_in_for="frechet",
    ),
)
