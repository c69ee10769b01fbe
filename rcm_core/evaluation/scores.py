"""Scores of samples: every metric with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, Estimate
from rcm_core.evaluation.judges.base import Judge, one_thread
from rcm_core.evaluation.metric import every_metric, metric_of


class Evidence:
    """The inputs of metrics by name (``metric.INPUTS``), each computed on first access."""

    def __init__(
        self, samples: Tensor, prompts: Sequence[str], judge: Judge, references: Mapping[str, np.ndarray]
    ) -> None:
        self._values: dict[str, Any] = {**references, "categories": judge.categories}
        self._makers: dict[str, Callable[[], Any]] = {
            "features": lambda: judge.features(samples),
            "correct": lambda: judge.correct(samples, prompts),
            "category": lambda: np.array([judge.category(prompt) for prompt in prompts]),
        }
        self._observe: Callable[[], dict[str, np.ndarray]] = lambda: judge.observe(samples, prompts)

    def add_groups(self, groups: Tensor, judge: Judge) -> None:
        """Add ``groups`` [P, S, ...] of S samples for each of P prompts; InputError for other shapes."""
        if groups.ndim < 3 or groups.shape[1] < 2:
            raise InputError(
                f"diversity got samples of shape {list(groups.shape)};"
                " pass [prompts, samples >= 2, C, T, H, W]"
            )
        many, each = groups.shape[:2]
        self._makers["groups"] = lambda: judge.features(groups.flatten(0, 1)).reshape(many, each, -1)
        if judge.pixels:
            self._makers["group_pixels"] = lambda: groups.flatten(2).double().numpy()

    @cached_property
    def observed(self) -> dict[str, np.ndarray]:
        """The judge's observations for further metrics."""
        return self._observe()

    def __contains__(self, name: str) -> bool:
        return name in self._values or name in self._makers or name in self.observed

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._makers[name]() if name in self._makers else self.observed[name]
        return self._values[name]


def score(
    samples: Tensor,
    prompts: Sequence[str],
    judge: Judge,
    real: np.ndarray | None,
    teacher: np.ndarray,
    groups: Tensor,
    bootstrap: Bootstrap,
) -> dict[str, Estimate]:
    """Compute every metric of one generator whose inputs exist, and the metrics' parts, such as accuracy by category.

    Without ``real`` the result has no frechet, precision and recall; pairwise compares pixels, so it needs a judge
    that keeps them.
    ``samples`` [N, ...]: results of ``judge.look``, with one prompt each; ``real`` [M, D]: features of held-out real
    images; ``teacher`` [K, D]: features of the teacher's samples, independent of ``samples`` (so that the floor is the
    teacher's own distance to them, not 0); ``groups`` [P, S, ...]: S samples of each of P prompts. Deterministic;
    takes about a second for 1,000 samples and 200 resamples of 64 features. InputError names an input that does not
    fit.
    """
    references = {"teacher": teacher} | ({} if real is None else {"real": real})
    with one_thread():
        evidence = Evidence(samples, prompts, judge, references)
        evidence.add_groups(groups, judge)
        rows: dict[str, Estimate] = {}
        for metric in every_metric():
            if all(need in evidence for need in metric.needs):
                rows[metric.name] = metric.estimate(evidence, bootstrap)
                parts = metric.parts(evidence, bootstrap) if metric.parts else {}
                rows |= {f"{metric.name}_{part}": number for part, number in parts.items()}
        return rows


def score_one(
    name: str,
    samples: Tensor,
    prompts: Sequence[str],
    judge: Judge,
    references: Mapping[str, np.ndarray],
    bootstrap: Bootstrap,
) -> Estimate:
    """Compute one metric, for selection; ``references`` has the features "real" and "teacher" if it needs them.

    InputError for an unknown metric, or one whose inputs the benchmark lacks.
    """
    metric = metric_of(name)
    with one_thread():
        evidence = Evidence(samples, prompts, judge, references)
        if missing := sorted(need for need in metric.needs if need not in evidence):
            raise InputError(
                f"the metric {name!r} needs {' and '.join(missing)}, which this benchmark does not have; choose another"
            )
        return metric.estimate(evidence, bootstrap)
