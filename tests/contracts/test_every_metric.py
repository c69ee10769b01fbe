"""What every metric keeps: identical sets score best, order does not matter, weights are copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from rcm_core.evaluation.metrics import (
    accuracy,
    diversity,
    dynamic_degree,
    frechet,
    motion_following,
    motion_smoothness,
    precision_recall,
    subject_consistency,
)
from rcm_core.registry import available

Array = np.ndarray


class Case(NamedTuple):
    """A metric as a function of samples [N, 8] and a reference [M, 8]."""

    value: Callable[[Array, Array], float]
    best: float
    replicate: Callable[[Array, Array, Array], Array] | None
    """With counts [R, N]; None where copies of a sample are not a larger sample."""


def _agree(samples: Array, reference: Array) -> Array:
    return samples[:, 0].round() == reference[: len(samples), 0].round()


def _in_groups(samples: Array) -> Array:
    return samples.reshape(1, -1, samples.shape[-1])


def _tracks(samples: Array, reference: Array) -> Array:
    """One object in four frames, which stands if both sets are the same: ``[N, 1, 4, 2]``."""
    samples, reference = np.sort(samples, 0), np.sort(reference, 0)[: len(samples)]
    return np.stack((samples, reference, samples, reference), 1)[:, None, :, :2]


def _steps(samples: Array) -> Array:
    """One object that goes from the origin by a sample, tenfold: ``[N, 1, 2, 2]``."""
    return np.stack((0 * samples, 10 * samples), 1)[:, None, :, :2]


def _sideways(samples: Array) -> Array:
    return np.sign(samples[:, None, :2]) * (1, 0)


CASES = {
    "accuracy": Case(
        lambda s, r: accuracy.accuracy(_agree(np.sort(s, 0), np.sort(r, 0))),
        1.0,
        None,
    ),
    "frechet": Case(frechet.frechet, 0.0, frechet.frechet_replicates),
    "precision_recall": Case(
        lambda s, r: sum(precision_recall.precision_recall(s, r)) / 2,
        1.0,
        None,
    ),
    "subject_consistency": Case(
        lambda s, r: subject_consistency.subject_consistency(_tracks(s, r)[:, 0]).mean(), 1.0, None
    ),
    "motion_smoothness": Case(
        lambda s, r: motion_smoothness.motion_smoothness(_tracks(s, r)).mean(), 1.0, None
    ),
    # the share that moves, or goes right, has no reference either
    "dynamic_degree": Case(
        lambda s, r: dynamic_degree.dynamic(_steps(s)).mean() / dynamic_degree.dynamic(_steps(r)).mean(),
        1.0,
        None,
    ),
    "motion_following": Case(
        lambda s, r: (
            motion_following.following(_steps(s), _sideways(s)).mean()
            / motion_following.following(_steps(r), _sideways(r)).mean()
        ),
        1.0,
        None,
    ),
    # diversity has no reference: relative to the reference's own, 1 is the same
    "diversity": Case(
        lambda s, r: diversity.vendi(_in_groups(s)) / diversity.vendi(_in_groups(r)),
        1.0,
        lambda s, r, c: (
            diversity.vendi_replicates(_in_groups(s), c[:, None]) / diversity.vendi(_in_groups(r))
        ),
    ),
}


@pytest.fixture
def sets() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return rng.normal(0.5, 1.0, (80, 8)), rng.normal(0.0, 1.5, (90, 8))


def test_every_metric_is_held_to_the_contract() -> None:
    assert sorted(CASES) == available("evaluation.metrics")


@pytest.mark.parametrize("name", CASES)
def test_identical_sets_score_best(name: str, sets: tuple[Array, Array]) -> None:
    # eigenvalues of float64 covariances: 1e-9 is far above their rounding and far below any real distance
    assert CASES[name].value(sets[0], sets[0]) == pytest.approx(CASES[name].best, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_order_of_samples_does_not_matter(name: str, sets: tuple[Array, Array]) -> None:
    samples, reference = sets
    rng = np.random.default_rng(1)
    shuffled = CASES[name].value(rng.permutation(samples), rng.permutation(reference))
    assert shuffled == pytest.approx(CASES[name].value(samples, reference), abs=1e-9)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.replicate])
def test_counting_a_sample_twice_is_having_it_twice(name: str, sets: tuple[Array, Array]) -> None:
    samples, reference = sets
    counts = np.random.default_rng(2).integers(0, 4, (3, len(samples)))
    case = CASES[name]
    assert case.replicate is not None
    copied = [case.value(samples.repeat(row, axis=0), reference) for row in counts]
    assert case.replicate(samples, reference, counts) == pytest.approx(copied, abs=1e-9)
