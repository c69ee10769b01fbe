"""Data of the page: the JSON of docs/results by teacher, budget and method."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.comparison.calibrate import Cost, common_costs
from experiments.comparison.page.intervals import Interval, clip_interval, mean_over_seeds, over_steps
from experiments.comparison.plan import BUDGETS, PLANS
from experiments.comparison.workspaces import FORMAT
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.metric import part_names, shown_metrics


@dataclass(frozen=True)
class Group:
    """All methods on one teacher with one budget; runs by method, in order of seeds."""

    teacher: str
    budget: str
    runs: dict[str, list[dict[str, Any]]]
    reference: dict[str, Any]
    """Rows of the teacher."""
    folder: Path
    costs: dict[str, Cost] = field(default_factory=dict)
    """Cost of an iteration of each calibrated method, as on the machine that calibrated the anchor."""
    processor: str = ""
    """The processor of that machine."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Runs without a result: name, seed, reason."""

    def values(self, name: str, metric: str, steps: int | None = None) -> list[Estimate]:
        """Return one estimate per seed: at ``steps``, or the mean over all step counts."""
        rows = [run["rows"] for run in self.runs[name]]
        return [over_steps(r, metric) if steps is None else r[f"student_{steps}"][metric] for r in rows]

    def interval(self, name: str, metric: str, steps: int | None = None) -> Interval:
        return clip_interval(mean_over_seeds(self.values(name, metric, steps)), metric)

    @property
    def steps(self) -> list[int]:
        """Return the evaluated step counts."""
        first = next(iter(self.runs.values()))[0]["rows"]
        return sorted(int(name.removeprefix("student_")) for name in first)

    @property
    def metrics(self) -> list[str]:
        """Return the metrics of the tables: those in all results, then their parts (accuracies by category)."""
        runs = [run for found in self.runs.values() for run in found]
        rows = [row for run in (self.reference, *runs) for row in run["rows"].values()]
        common = set.intersection(*map(set, rows))
        shown = [metric.name for metric in shown_metrics("comparison") if metric.name in common]
        return [*shown, *(part for name in shown for part in part_names(name, common))]

    @property
    def accuracy(self) -> str:
        """Return the benchmark's headline accuracy: the mean over categories if it has categories."""
        return "accuracy_mean" if "accuracy_mean" in self.metrics else "accuracy"

    def seconds(self, name: str) -> float | None:
        """Return the seconds of a training by calibration, else of the runs themselves on a possibly busy machine.

        None if the runs were on another processor than the calibration: their seconds cannot be compared.
        """
        first = self.runs[name][0]
        if name in self.costs:
            return self.costs[name].seconds(first["iterations"])
        if first["machine"]["processor"] != self.processor:
            return None
        return self.measure(name, "seconds").value

    def measure(self, name: str, key: str) -> Interval:
        """Return the mean over seeds of the training's cost ``key``, with its interval by Student's t."""
        found = [float(run["training"][key]) for run in self.runs[name]]
        return mean_over_seeds([{"value": f, "low": f, "high": f, "n": 1} for f in found]).within(
            0.0, math.inf
        )


@dataclass(frozen=True)
class Results:
    """All results of docs/results."""

    groups: list[Group] = field(default_factory=list)
    warm_starts: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] | None = None
    mixture: dict[str, Any] | None = None
    balance: dict[str, Any] | None = None

    def group(self, teacher: str, budget: str) -> Group | None:
        return next((g for g in self.groups if (g.teacher, g.budget) == (teacher, budget)), None)


def load(folder: Path) -> Results:
    """Read the results in ``folder`` (docs/results); results of another format are ignored."""
    return Results(
        list(_groups(folder / "compare")),
        sorted(
            (json.loads(p.read_text()) for p in (folder / "warm-start").glob("*.json")),
            key=lambda study: (study["run"], study["refined"], study["rate"]),
        ),
        _json(folder / "memory.json"),
        _json(folder / "mixture.json"),
        _json(folder / "balance.json"),
    )


def _groups(folder: Path) -> Iterator[Group]:
    for teacher in PLANS:
        reference = _json(folder / teacher / "teacher.json")
        calibration = _json(folder / teacher / "calibration.json")
        costs = common_costs(calibration["entries"], PLANS[teacher].anchor) if calibration else {}
        processor = calibration["machine"]["processor"] if calibration else ""
        for budget in BUDGETS:
            found = [json.loads(p.read_text()) for p in sorted((folder / teacher / budget).glob("*.json"))]
            # results on another teacher or by another protocol are not comparable
            same = [
                r
                for r in found
                if reference is not None
                and (r["format"], r["teacher_hash"], r["protocol"])
                == (FORMAT, reference["hash"], reference["protocol"]["hash"])
            ]
            order = [v.name for v in PLANS[teacher].variants]
            names = sorted(
                {r["name"] for r in same}, key=lambda n: order.index(n) if n in order else len(order)
            )
            runs = {n: sorted((r for r in same if r["name"] == n), key=lambda r: r["seed"]) for n in names}
            if runs and reference is not None:
                place = folder / teacher / budget
                failed = [json.loads(p.read_text()) for p in sorted((place / "failed").glob("*.json"))]
                yield Group(teacher, budget, runs, reference, place, costs, processor, failed)


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
