"""Seconds per iteration of every variant, measured alternately in one process; the budget "time" is based on them.

``python -m experiments.comparison.calibrate CALIBRATION.json``
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from experiments.comparison.measurements import machine
from infra.executors.local import LocalExecutor
from rcm_core.config.load import load_params
from rcm_core.config.sections import Params
from rcm_core.execution import TrainContext, TrainJob
from rcm_core.storage.files import read_json, write_json
from rcm_core.training import distill
from rcm_core.training.trainer import Trainer

ROUNDS = 6
CHUNK = 12
"""Iterations per turn: a multiple of every method's cycle."""
FEWEST = 4


class Cost(NamedTuple):
    """Seconds per iteration before and after the method's warm-up of ``warmup`` iterations."""

    warmup: int
    warm: float
    steady: float

    def seconds(self, iterations: int) -> float:
        """Return the seconds of a training of ``iterations`` iterations."""
        early = min(iterations, self.warmup)
        return early * self.warm + (iterations - early) * self.steady

    def scale(self, factor: float) -> Cost:
        """Return the cost on a machine that takes ``factor`` times as long."""
        return Cost(self.warmup, factor * self.warm, factor * self.steady)

    def iterations(self, seconds: float) -> int:
        """Return the largest number of iterations that fits into ``seconds``."""
        early = self.warmup * self.warm
        if seconds <= early:
            return max(FEWEST, int(seconds / self.warm))
        return max(FEWEST, self.warmup + int((seconds - early) / self.steady))


class Calibration(NamedTuple):
    """One calibration: workspaces by name, including the anchor's; the results are written to ``place``."""

    anchor: str
    workspaces: dict[str, str]
    keys: dict[str, str]
    place: str
    rounds: int = ROUNDS


@dataclass
class Contestant:
    """A variant's trainer and the times of its iterations."""

    trainer: Trainer
    warmup: int
    warm: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.early: Iterator[int] = count(0)
        self.late: Iterator[int] = count(self.warmup)

    def turn(self, timed: bool) -> None:
        """Run a chunk of iterations after the method's warm-up and, if it has one, a chunk during it."""
        late = self._chunk(self.late)
        early = self._chunk(self.early) if self.warmup else late
        if timed:
            self.steady.append(late)
            self.warm.append(early)

    def _chunk(self, steps: Iterator[int]) -> float:
        """Return the CPU seconds per iteration of one busy thread: the time that an idle machine would take."""
        began = time.process_time()
        for _ in range(CHUNK):
            self.trainer.train_step(next(steps))
        return (time.process_time() - began) / CHUNK

    @property
    def cost(self) -> Cost:
        return Cost(self.warmup, fmean(self.warm), fmean(self.steady))


def measure(context: TrainContext, spec: dict[str, Any]) -> None:
    """Measure all contestants alternately, so that a slow phase of the machine affects all; a loop for an executor."""
    contestants = {name: _contestant(context, Path(place)) for name, place in spec["workspaces"].items()}
    for each in contestants.values():
        each.turn(timed=False)
    for number in range(spec["rounds"]):
        for each in contestants.values():
            each.turn(timed=True)
        print(f"calibration: round {number + 1} of {spec['rounds']}", flush=True)
    spec["found"] = {name: each.cost for name, each in contestants.items()}


def _contestant(context: TrainContext, workspace: Path) -> Contestant:
    params: Params = load_params(workspace / "params.yaml")
    state = workspace / "calibration"
    spec = {
        "params": params.model_dump(mode="json"),
        "workspace": str(workspace),
        "state": str(state),
        "cache": str(state / "cache"),
    }
    return Contestant(distill.assemble(context, spec), int(params.method.get("warmup", 0)))


def calibrate(job: Calibration) -> None:
    """Measure and add to ``job.place``: every variant's cost, and the anchor's in the same session."""
    first = load_params(Path(job.workspaces[job.anchor]) / "params.yaml").train
    spec: dict[str, Any] = {"workspaces": job.workspaces, "rounds": job.rounds}
    with tempfile.TemporaryDirectory() as folder:
        LocalExecutor(Path(folder)).train(TrainJob(
            measure, spec, state=Path(folder) / "calibration", workers=1, threads=first.threads,
            device=first.device,
        ))  # fmt: skip
    found: dict[str, Cost] = spec["found"]
    place = Path(job.place)
    known = known_entries(place)
    for name, cost in found.items():
        known[name] = {
            "key": job.keys[name],
            "cost": cost._asdict(),
            "anchor": found[job.anchor]._asdict(),
            "rounds": job.rounds,
        }
    write_json(place, {"anchor": job.anchor, "entries": known, "machine": machine()})


def known_entries(place: Path) -> dict[str, Any]:
    """Return the earlier measurements by name."""
    return dict(read_json(place, "compare")["entries"]) if place.is_file() else {}


def common_costs(entries: Mapping[str, dict[str, Any]], anchor: str) -> dict[str, Cost]:
    """Return all costs as on the machine that calibrated ``anchor``.

    Entries of another session or machine are scaled by the anchor's cost there, which every session measures.
    """
    if anchor not in entries:
        return {}
    reference = entries[anchor]["cost"]["steady"]
    return {
        name: Cost(**entry["cost"]).scale(reference / entry["anchor"]["steady"])
        for name, entry in entries.items()
    }


def affordable(entry: dict[str, Any], anchor_iterations: int) -> int:
    """Return the iterations of a variant in the time that the anchor needs for ``anchor_iterations``."""
    return Cost(**entry["cost"]).iterations(Cost(**entry["anchor"]).seconds(anchor_iterations))


if __name__ == "__main__":
    calibrate(Calibration(**json.loads(Path(sys.argv[1]).read_text())))
