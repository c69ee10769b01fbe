"""Estimate the time of a run of the eight stages, and the time left, from earlier runs and finished stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.params import compose_aside, teacher_overrides
from rcm_core.errors import InputError
from rcm_core.storage.files import read_json
from rcm_core.storage.run_folder import RunFolder

STAGES = ("teacher", "prompts", "trajectories", "train", "select", "evaluate", "report", "publish")
MEASURED = Path("docs/results/mini.json")
"""Seconds of each stage for ``mini`` with the parameters of conf/, on two cores (scripts/readme_results.py)."""
OVERHEAD = 6.0
"""Seconds of overhead per stage: DVC, imports, Ray."""
RELIABLE = 10.0
"""Minimum expected seconds of a stage that is used to measure the speed of this machine."""


@dataclass(frozen=True)
class Expectation:
    """Expected seconds of each stage if it runs, and the basis of the estimate."""

    seconds: Mapping[str, float]
    basis: str

    def sentence(self) -> str:
        if not self.seconds:
            return f"{len(STAGES)} stages, unknown duration: {self.basis}"
        total = format_minutes(sum(self.seconds.values()))
        return f"{len(STAGES)} stages, {total} if all of them run ({self.basis}); finished ones are skipped"


def expect(root: Path, overrides: Sequence[str], teacher: str | None) -> Expectation:
    """Estimate from the last run in ``root``, scaled by the amount of work; else from the measurement of mini.

    Raises InputError if the overrides do not fit conf/.
    """
    changes = [*overrides, *teacher_overrides(root, teacher, None)]
    with compose_aside(root, changes) as (_, params):
        wanted = params.model_dump(mode="json")
    seconds = {}
    for stage in STAGES:
        record = _json(RunFolder.of(root).record_file(stage))
        if "seconds" in record:
            scale = _work(stage, wanted) / _work(stage, wanted | record.get("parameters", {}))
            seconds[stage] = record["seconds"] * scale + OVERHEAD
    if len(seconds) == len(STAGES):
        return Expectation(seconds, "as long as the last run here")
    with compose_aside(root, []) as (_, standard):
        usual = standard.model_dump(mode="json")
    if params.teacher.source != standard.teacher.source or not (root / MEASURED).is_file():
        return Expectation({}, "there is no earlier run with this teacher")
    measured = _json(root / MEASURED)["stage_seconds"]
    return Expectation(
        {s: measured[s] * _work(s, wanted) / _work(s, usual) + OVERHEAD for s in STAGES},
        "measured on two cores",
    )


@dataclass
class Pace:
    """Current stage of a run, and the seconds left."""

    expectation: Mapping[str, float]
    clock: Callable[[], float] = time.monotonic
    stage: str = ""
    _began: float = 0.0
    _first: tuple[int, float] | None = None
    _last: tuple[int, int, float] | None = None
    _took: dict[str, float] = field(default_factory=dict)

    def begin(self, stage: str) -> None:
        """Record that ``stage`` starts and the previous one has ended."""
        self._end()
        self.stage, self._began = stage, self.clock()

    def count(self, done: int, total: int) -> None:
        """Record that the stage has done ``done`` of ``total`` parts. A resumed stage does not start at 0."""
        now = self.clock()
        if self._first is None or self._last is None or self._last[1] != total or done < self._last[0]:
            self._first = (done, now)
        self._last = (done, total, now)

    def seconds_left(self) -> float | None:
        """Return the seconds until the run ends; None while the duration is unknown."""
        if not self.expectation:
            return None
        later = STAGES[STAGES.index(self.stage) + 1 :] if self.stage in STAGES else STAGES
        return self._left_in_stage() + self._slowness() * sum(self.expectation[s] for s in later)

    def sentence(self) -> str:
        """Return a sentence such as "stage 4 of 8: train; about 5 min left"."""
        left = self.seconds_left()
        place = f"stage {STAGES.index(self.stage) + 1} of {len(STAGES)}: {self.stage}"
        return place if left is None else f"{place}; {format_minutes(left)} left"

    def _left_in_stage(self) -> float:
        if self.stage not in STAGES:
            return 0.0
        now = self.clock()
        if self._first and self._last and self._last[0] > self._first[0]:
            (first, began), (done, total, then) = self._first, self._last
            return max((then - began) / (done - first) * (total - done) - (now - then), 0.0)
        return max(self._slowness() * self.expectation[self.stage] - (now - self._began), 0.0)

    def _slowness(self) -> float:
        """Return the ratio of measured to expected time of the finished stages."""
        told = [s for s in self._took if self.expectation[s] >= RELIABLE]
        return sum(self._took[s] for s in told) / sum(self.expectation[s] for s in told) if told else 1.0

    def _end(self) -> None:
        if self.stage in self.expectation and self._last is not None:  # a skipped stage does not count
            self._took[self.stage] = self.clock() - self._began
        self._first = self._last = None


def format_minutes(seconds: float) -> str:
    """Format as "about 12 min"."""
    minutes = round(seconds / 60)
    if minutes >= 90:
        return f"about {seconds / 3600:.1f} h"
    return f"about {minutes} min" if minutes else "less than a minute"


def _work(stage: str, params: Mapping[str, Any]) -> float:
    """Return a number proportional to the stage's time; 1 if no parameter determines it."""
    amounts = {
        "teacher": ("teacher.mini.steps", "teacher.mini.batch"),
        "trajectories": ("trajectories.samples",),
        "train": ("train.iterations", "train.batch"),
        "select": ("select.samples",),
        "evaluate": ("evaluate.samples",),
    }
    product = 1.0
    for name in amounts.get(stage, ()):
        value: Any = params
        for key in name.split("."):
            value = value.get(key, {}) if isinstance(value, Mapping) else {}
        product *= value if isinstance(value, int) and value > 0 else 1
    return product


def _json(path: Path) -> dict[str, Any]:
    """Read a record; return {} if it is missing or unreadable, because then the stage reruns."""
    try:
        found = read_json(path, "")
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}
