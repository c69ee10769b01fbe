"""Contract of every metric: complete record, values within bounds, stated direction, independence of order."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from rcm_core.evaluation.bootstrap import Bootstrap
from rcm_core.evaluation.metric import INPUTS, Metric, Place, every_metric
from rcm_core.registry import available, every

N, WIDTH, FRAMES = 60, 6, 5
BOOTSTRAP = Bootstrap(8, 0)
REFERENCES = ("real", "teacher", "categories")
TIME = np.arange(FRAMES, dtype=float)


def inputs(good: bool) -> dict[str, Any]:
    """Return all inputs of metrics, from perfect samples or from samples that are wrong in every respect."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(N, WIDTH))
    groups = np.eye(4)[None].repeat(3, 0) + (0 if good else 100)
    # objects that move to the right by 2 pixels per frame, or that jitter at one place
    path = 2 * TIME if good else 0.8 * (TIME % 2)
    tracks = np.zeros((N, 2, FRAMES, 2))
    tracks[..., 0] = path
    subjects = np.ones((N, FRAMES, WIDTH))
    if not good:
        subjects[:, 1::2] *= np.sign(np.arange(WIDTH) - 2.5)
    return {
        "features": real if good else real + 9,
        "correct": np.full(N, good),
        "category": np.array(["one", "two"])[np.arange(N) % 2],
        "categories": ("one", "two"),
        "teacher": real,
        "real": real,
        "groups": groups,
        "group_pixels": np.eye(4)[None].repeat(3, 0) * (1 if good else 0.1),
        "similarity": np.full(N, 1.0 if good else -0.5),
        "subjects": subjects,
        "tracks": tracks,
        "directions": np.tile((1.0, 0.0), (N, 2, 1)),
    }


@pytest.fixture(params=every_metric(), ids=lambda metric: metric.name)
def metric(request: pytest.FixtureRequest) -> Metric:
    found: Metric = request.param
    return found


def test_every_file_has_records_and_names_are_unique() -> None:
    assert len(every("evaluation.metrics")) == len(available("evaluation.metrics"))
    assert all(module.METRICS for module in every("evaluation.metrics"))
    for fact in ("name", "place"):
        values = [getattr(metric, fact) for metric in every_metric()]
        assert len(set(values)) == len(values), fact


def test_every_input_has_an_example() -> None:
    assert inputs(True).keys() == INPUTS.keys()


def test_facts_are_complete(metric: Metric) -> None:
    assert metric.name.isidentifier()
    assert metric.title
    assert metric.bounds[0] < metric.bounds[1]
    assert metric.needs
    assert metric.needs <= INPUTS.keys()
    assert metric.shown <= set(get_args(Place))
    # metrics that compare groups cannot be measured on the samples of selection
    assert not (metric.selects and metric.needs & {"groups", "group_pixels"})
    assert not metric.stands_in_for or metric.stands_in_for in {m.name for m in every_metric()}


@pytest.mark.parametrize("good", [True, False])
def test_values_lie_in_their_interval_and_within_bounds(metric: Metric, good: bool) -> None:
    numbers = [metric.estimate(inputs(good), BOOTSTRAP)]
    numbers += metric.parts(inputs(good), BOOTSTRAP).values() if metric.parts else []
    for number in numbers:
        slack = 1e-9  # of eigenvalues
        assert metric.bounds[0] - slack <= number["low"] <= number["value"] + slack
        assert number["value"] - slack <= number["high"] <= metric.bounds[1] + slack
        assert number["n"] > 0
    assert metric.estimate(inputs(good), BOOTSTRAP) == numbers[0]


def test_perfect_samples_are_better_and_the_best_there_can_be(metric: Metric) -> None:
    good, bad = (metric.estimate(inputs(kind), BOOTSTRAP)["value"] for kind in (True, False))
    assert metric.sign * good > metric.sign * bad
    best = metric.bounds[1 if metric.higher_is_better else 0]
    if np.isfinite(best):
        assert good == pytest.approx(best, abs=1e-9)


def test_the_order_of_samples_does_not_matter(metric: Metric) -> None:
    rng = np.random.default_rng(1)
    mixed = inputs(True) | {name: mixture(name) for name in ("features", "correct", "similarity", "tracks")}
    order = rng.permutation(N)
    shuffled = {
        name: value if name in REFERENCES else value[order] if len(value) == N else np.flip(value, 1).copy()
        for name, value in mixed.items()
    }
    shuffled |= {name: rng.permutation(mixed[name]) for name in ("real", "teacher")}
    values = [metric.estimate(each, BOOTSTRAP)["value"] for each in (mixed, shuffled)]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def mixture(name: str) -> Any:
    """Return ``name`` for half of the good and half of the bad samples."""
    return np.concatenate([inputs(True)[name][: N // 2], inputs(False)[name][N // 2 :]])
