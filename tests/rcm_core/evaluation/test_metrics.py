"""Metrics compared with closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, share_replicates
from rcm_core.evaluation.metrics.accuracy import accuracy
from rcm_core.evaluation.metrics.diversity import pairwise, pairwise_replicates, vendi, vendi_replicates
from rcm_core.evaluation.metrics.frechet import frechet, frechet_replicates
from rcm_core.evaluation.metrics.precision_recall import NEIGHBOURS, precision, recall


def precision_recall(samples: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    inputs = {"features": samples, "real": real}
    one, two = (measure(inputs, Bootstrap(2, 0))["value"] for measure in (precision, recall))
    return one, two


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return a set with exactly this sample mean and covariance."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    values, vectors = np.linalg.eigh(covariance)
    return mean + white @ (vectors * np.sqrt(values.clip(0))) @ vectors.T


def test_frechet_of_commuting_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    a, b = rng.uniform(0.1, 4, (2, 12))
    mean = rng.normal(size=(2, 12))
    first = with_moments(mean[0], (basis * a) @ basis.T, 50, 1)
    second = with_moments(mean[1], (basis * b) @ basis.T, 60, 2)
    expected = np.square(mean[0] - mean[1]).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet(first, second) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_any_gaussians_agrees_with_the_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(3)
    first, second = (rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) for _ in range(2))
    a, b = np.cov(first.T), np.cov(second.T)
    gap = np.square(first.mean(0) - second.mean(0)).sum()
    expected = gap + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet(second, first) == pytest.approx(expected, rel=1e-8)


def test_frechet_is_exact_when_features_are_dead_or_fewer_than_dimensions() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(20, 64))
    x[:, 40:] = 0
    # 20 points span 19 of 64 dimensions; rounding of the 45 zero eigenvalues would otherwise show at 1e-7
    assert frechet(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet(x + 0.5, x) == pytest.approx(64 * 0.25, rel=1e-10)


def test_frechet_survives_features_far_from_zero() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    # float64 keeps ten digits after the offset takes six of sixteen
    assert frechet(first + 1e6, second + 1e6) == pytest.approx(frechet(first, second), rel=1e-6)


def test_precision_and_recall_see_fidelity_and_coverage_apart() -> None:
    rng = np.random.default_rng(6)
    real = np.concatenate([rng.normal(-10, 1, (100, 4)), rng.normal(10, 1, (100, 4))])
    one_mode = rng.normal(-10, 0.5, (200, 4))
    assert precision_recall(one_mode, real)[0] >= 0.95
    assert precision_recall(one_mode, real)[1] <= 0.5
    spread = np.concatenate([real + 0.01, rng.normal(100, 1, (200, 4))])
    assert precision_recall(spread, real) == (0.5, 1.0)


def test_precision_and_recall_refuse_a_handful_of_samples() -> None:
    few = np.zeros((4 * NEIGHBOURS - 1, 2))
    with pytest.raises(InputError, match="at least"):
        precision_recall(few, np.zeros((100, 2)))


def test_vendi_counts_distinct_directions() -> None:
    assert vendi(np.eye(5)[None]) == pytest.approx(5)
    assert vendi(np.ones((3, 7, 4))) == pytest.approx(1)
    assert vendi(np.eye(3)[None].repeat(4, axis=1)) == pytest.approx(3)


def test_pairwise_is_the_mean_distance_between_two_samples() -> None:
    groups = np.array([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [3.0, 3.0]]])
    assert pairwise(groups) == pytest.approx(2)
    # a third sample that is a copy of the first adds no pair with its original
    assert pairwise_replicates(groups, np.array([[[2, 1], [2, 1]]])) == pytest.approx(2)
    assert pairwise_replicates(groups, np.array([[[3, 0], [0, 3]]])) == pytest.approx(0)


def test_accuracy_counts() -> None:
    correct = np.array([True, True, True, False])
    assert accuracy({"correct": correct}, Bootstrap(9, 0))["value"] == 0.75
    assert share_replicates(correct, np.array([[0, 0, 0, 4], [1, 1, 1, 1]])) == pytest.approx([0, 0.75])


def test_counting_a_sample_twice_is_having_it_twice() -> None:
    rng = np.random.default_rng(0)
    samples, reference = rng.normal(0.5, 1.0, (80, 8)), rng.normal(0.0, 1.5, (90, 8))
    counts = rng.integers(0, 4, (3, len(samples)))
    copies = [samples.repeat(row, axis=0) for row in counts]
    far = [frechet(copy, reference) for copy in copies]
    assert frechet_replicates(samples, reference, counts) == pytest.approx(far, abs=1e-9)
    distinct = [vendi(copy[None]) for copy in copies]
    assert vendi_replicates(samples[None], counts[:, None]) == pytest.approx(distinct, abs=1e-9)
