"""The health of a training: samples that are not finite, norms that spike, what probes say of the student.

Non-finite samples are counted and left out, never repaired; too many stop the run or step the tangent down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rcm_core.config.sections import HealthSection
from rcm_core.monitoring.early_stopping import ProbeResult, StopDecision, decide_stop, of_state

LADDER = ("exact", "semi", "discrete")
WINDOW = 100
FEWEST = 20
"""Values that a running median needs before anything is compared with it."""
PERSISTENT = 10
"""Spikes among the last ``WINDOW`` values that are no accident any more."""
NORMS = ("tangent_norm", "gradient_norm")


@dataclass
class NonFinite:
    """Non-finite samples of the last ``window`` steps; at most the share ``limit`` of a full window's may be.

    A window that has just begun is held to the same number, so one bad sample in the first step stops nothing.
    """

    limit: float
    window: int = WINDOW
    counts: deque[tuple[int, int]] = field(default_factory=deque)

    def record(self, nonfinite: int, samples: int) -> None:
        """Adds one step."""
        self.counts.append((nonfinite, samples))
        while len(self.counts) > self.window:
            self.counts.popleft()

    @property
    def nonfinite(self) -> int:
        """Non-finite samples in the window."""
        return sum(k for k, _ in self.counts)

    @property
    def allowed(self) -> float:
        """How many there may be; 0 before the first step."""
        return self.limit * self.window * max((n for _, n in self.counts), default=0)

    @property
    def exceeded(self) -> bool:
        """Whether there are more than allowed."""
        return self.nonfinite > self.allowed

    def sentence(self, step: int) -> str:
        """What happened, what was allowed, what to do."""
        return (
            f"step {step}: {self.nonfinite} samples of the last {len(self.counts)} steps are not finite,"
            f" train.max_nonfinite = {self.limit:g} allows {self.allowed:.0f}; lower the learning rates, raise"
            " method.warmup, or set train.tangent to semi or discrete (train.tangent_fallback does so by itself)"
        )


@dataclass
class Spikes:
    """Values of a norm that exceed ``factor`` times their running median.

    A level that has changed for good is no spike: the median has followed after half a window.
    """

    factor: float | None
    recent: deque[tuple[float, bool]] = field(default_factory=deque)
    """The last ``WINDOW`` values, and which were spikes."""
    total: int = 0

    def record(self, value: float) -> bool:
        """Adds one value; whether it is a spike."""
        known = [v for v, _ in self.recent]
        spike = self.factor is not None and len(known) >= FEWEST and value > self.factor * median(known)
        self.recent.append((value, spike))
        while len(self.recent) > WINDOW:
            self.recent.popleft()
        self.total += spike
        return spike

    @property
    def persistent(self) -> bool:
        """Whether they keep coming back."""
        return sum(spike for _, spike in self.recent) >= PERSISTENT


@dataclass
class Health:
    """All of it, in plain values that a checkpoint keeps; the same on every rank."""

    max_nonfinite: float
    limits: HealthSection | None = None
    """None: only ``max_nonfinite`` holds."""
    lost: int = 0
    """Samples left out as not finite, over the whole run."""
    readings: list[ProbeResult] = field(default_factory=list)
    step_downs: list[dict[str, Any]] = field(default_factory=list)
    verdict: StopDecision | None = None

    def __post_init__(self) -> None:
        self.nonfinite = NonFinite(self.max_nonfinite)
        self.spikes = {name: Spikes(self.limits.spike if self.limits else None) for name in NORMS}

    def count(self, step: int, nonfinite: int, samples: int) -> str | None:
        """Adds a step before its weights are changed: what is wrong with it, None if nothing."""
        self.lost += nonfinite
        self.nonfinite.record(nonfinite, samples)
        return self.nonfinite.sentence(step) if self.nonfinite.exceeded else None

    def watch(self, scalars: Mapping[str, float]) -> int:
        """Adds the norms of a step: how many of them spiked."""
        return sum(s.record(scalars[name]) for name, s in self.spikes.items() if name in scalars)

    def unsteady(self, step: int) -> str | None:
        """What is wrong with the tangent if its norm keeps spiking, else None."""
        tangents = self.spikes["tangent_norm"]
        if not tangents.persistent or tangents.factor is None:
            return None
        return (
            f"step {step}: the tangent norm was more than train.health.spike = {tangents.factor:g} times its running"
            f" median in {PERSISTENT} of the last {len(tangents.recent)} steps that have one"
        )

    def step_down(self, step: int, before: str, after: str) -> None:
        """Notes a step down the ladder; what is judged begins anew, for it belongs to the rung above."""
        self.step_downs.append({"step": step, "from": before, "to": after})
        self.nonfinite.counts.clear()
        self.spikes["tangent_norm"].recent.clear()

    def read(self, reading: ProbeResult, last: bool) -> None:
        """Adds a probe, and judges."""
        self.readings.append(reading)
        if self.limits is not None:
            self.verdict = decide_stop(self.readings, self.limits, last)

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "lost": self.lost,
            "counts": list(self.nonfinite.counts),
            "spikes": {name: {"recent": list(s.recent), "total": s.total} for name, s in self.spikes.items()},
            "readings": [r._asdict() for r in self.readings],
            "step_downs": list(self.step_downs),
            "verdict": self.verdict._asdict() if self.verdict else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What ``state`` gave, after a way through JSON."""
        self.lost = state["lost"]
        self.nonfinite.counts = deque((k, n) for k, n in state["counts"])
        for name, saved in state["spikes"].items():
            self.spikes[name].recent = deque((v, s) for v, s in saved["recent"])
            self.spikes[name].total = saved["total"]
        self.readings = [ProbeResult(**r) for r in state["readings"]]
        self.step_downs = list(state["step_downs"])
        self.verdict = of_state(state["verdict"])

    def facts(self) -> dict[str, Any]:
        """For ``health.json``."""
        state = self.state()
        return {
            "nonfinite": self.lost,
            "spikes": {name: s.total for name, s in self.spikes.items()},
            **{key: state[key] for key in ("readings", "step_downs", "verdict")},
        }


def next_rung(tangent: str) -> str | None:
    """The next more robust way to the tangent, or None at the bottom of the ladder."""
    rung = LADDER.index(tangent) + 1
    return LADDER[rung] if rung < len(LADDER) else None
