"""The record of a metric, and the registry: each file in ``metrics/`` has a tuple ``METRICS`` of records.

Selection, report, model card and the comparison's page read these records and keep no tables of metrics themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, Estimate
from rcm_core.registry import every

PROPORTION = (0.0, 1.0)
NO_BOUND = (0.0, float("inf"))
INPUTS = {
    "features": "the judge's features of the samples, float64 [N, D]",
    "correct": "whether the judge recognises in each sample what its prompt asks for, bool [N]",
    "category": "the category of each prompt, text [N]",
    "categories": "the names of all categories, none if the benchmark has one kind of prompt",
    "teacher": "features of the teacher's samples from other seeds, float64 [K, D]",
    "real": "features of held-out real images, float64 [M, D]",
    "groups": "features of S samples for each of P prompts, float64 [P, S, D]",
    "group_pixels": "the same samples as pixels, float64 [P, S, values]",
    "similarity": "cosine of each sample to its own prompt, float64 [N]",
    "subjects": "features of the subject in every frame, float64 [N, T, D]",
    "tracks": "centres of K objects in T frames, NaN where one is not detected, float64 [N, K, T, 2]",
    "directions": "unit steps that the prompts ask of the objects, zero without an object, float64 [N, K, 2]",
}
"""The possible inputs of a metric, by name. The judge observes the last four; a benchmark may lack any of them."""
Place = Literal["results", "measures", "card", "comparison", "advice"]
"""A place that shows metrics: the report's table of results or of further measures, the model card, the tables of the
comparison, or its advice.
"""


class Inputs(Protocol):
    """The inputs of ``INPUTS`` by name; a mapping implements this protocol."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True)
class Metric:
    """Everything the repository knows about one metric."""

    name: str
    """Key in metrics.json."""
    title: str
    """Heading in the report."""
    higher_is_better: bool
    bounds: tuple[float, float]
    """Lowest and highest possible value."""
    needs: frozenset[str]
    """Names in ``INPUTS``. Results that lack one of them omit the metric."""
    estimate: Callable[[Inputs, Bootstrap], Estimate]
    """The value with its bootstrap interval."""
    place: int
    """Position among all metrics, smallest first."""
    parts: Callable[[Inputs, Bootstrap], dict[str, Estimate]] | None = None
    """Further numbers of the metric by part; stored as ``<name>_<part>``."""
    selects: bool = True
    """True if ``select.metric`` may name it. False for a metric that bad samples can maximise."""
    shown: frozenset[Place] = frozenset({"results", "card", "comparison"})
    stands_in_for: str = ""
    """The metric that this one replaces on the model card of a benchmark that lacks that one."""
    note: str = ""
    """Small print below ``title``; ``{reference}`` is replaced by the name of the teacher's samples."""
    chart: str = ""
    """Title of a chart, with ``{reference}`` as in ``note``; empty: ``title``."""
    axis: str = ""
    """Label of an axis; empty: ``title`` in lower case."""
    column: str = ""
    """Heading in the comparison; empty: ``title`` in lower case, with the unit."""
    phrase: str = ""
    """Name within a sentence; empty: ``title`` in lower case."""
    superlative: str = ""
    """The comparison's term for the best method; empty: "highest" or "lowest" and ``phrase``."""

    def __post_init__(self) -> None:
        lower = self.title.lower()
        best = "highest" if self.higher_is_better else "lowest"
        defaults = {"chart": self.title, "axis": lower, "phrase": lower}
        defaults["column"] = f"{lower} %" if self.is_proportion else lower
        defaults["superlative"] = f"{best} {self.phrase or lower}"
        for name, value in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or value)

    @property
    def sign(self) -> int:
        """1 if larger values are better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def arrow(self) -> str:
        """The direction of better values as an arrow."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def direction(self) -> str:
        """The direction of better values in words."""
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    @property
    def is_proportion(self) -> bool:
        """True if values are shares of samples, which tables give in per cent."""
        return self.bounds == PROPORTION


@cache
def every_metric() -> tuple[Metric, ...]:
    """Return the records of all files in ``metrics/``, in the order in which they are shown."""
    metrics = [metric for module in every("evaluation.metrics") for metric in module.METRICS]
    return tuple(sorted(metrics, key=lambda metric: metric.place))


def shown_metrics(place: Place) -> list[Metric]:
    """Return the metrics that are shown in ``place``, in order."""
    return [metric for metric in every_metric() if place in metric.shown]


def metric_of(name: str) -> Metric:
    """Return the record of the metric ``name``, or of the metric of which it is a part; InputError if it is unknown."""
    metrics = {metric.name: metric for metric in every_metric()}
    record = metrics.get(name) or next((m for m in metrics.values() if part_names(m.name, [name])), None)
    if record is None:
        raise InputError(f"unknown metric {name!r}; available: {', '.join(metrics)}")
    return record


def part_names(name: str, names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that are parts of the metric ``name``, as accuracy_mean is of accuracy; sorted."""
    metrics = {metric.name: metric for metric in every_metric()}
    if metrics[name].parts is None:
        return []
    return sorted(other for other in names if other.startswith(f"{name}_") and other not in metrics)
