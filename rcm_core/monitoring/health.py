"""The health of a training: non-finite samples, spikes of norms, and probes of the student.

Non-finite samples are counted and masked, never repaired; too many stop the run or step the tangent down.
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
"""Minimum number of values in a running median before values are compared with it."""
PERSISTENT = 10
"""Number of spikes among the last ``WINDOW`` values that counts as persistent."""
NORMS = ("tangent_norm", "gradient_norm")


@dataclass
class NonFinite:
    """Non-finite samples of the last ``window`` steps; at most the share ``limit`` of a full window is allowed.

    While the window fills, the limit is that of a full window, so a single bad sample in the first step does not stop
    the run.
    """

    limit: float
    window: int = WINDOW
    counts: deque[tuple[int, int]] = field(default_factory=deque)

    def record(self, nonfinite: int, samples: int) -> None:
        """Add one step."""
        self.counts.append((nonfinite, samples))
        while len(self.counts) > self.window:
            self.counts.popleft()

    @property
    def nonfinite(self) -> int:
        """Number of non-finite samples in the window."""
        return sum(k for k, _ in self.counts)

    @property
    def allowed(self) -> float:
        """Maximum number of non-finite samples; 0 before the first step."""
        return self.limit * self.window * max((n for _, n in self.counts), default=0)

    @property
    def exceeded(self) -> bool:
        """True if the window has more non-finite samples than allowed."""
        return self.nonfinite > self.allowed

    def sentence(self, step: int) -> str:
        """Return the error: what happened, what is allowed, what to do."""
        return (
            f"step {step}: {self.nonfinite} samples of the last {len(self.counts)} steps are not finite,"
            f" train.max_nonfinite = {self.limit:g} allows {self.allowed:.0f}; lower the learning rates, raise"
            " method.warmup, or set train.tangent to semi or discrete (train.tangent_fallback does so by itself)"
        )


@dataclass
class Spikes:
    """Values of a norm that exceed ``factor`` times their running median.

    A permanent change of level is not a spike: the median follows it after half a window.
    """

    factor: float | None
    recent: deque[tuple[float, bool]] = field(default_factory=deque)
    """The last ``WINDOW`` values, each with a flag for a spike."""
    total: int = 0

    def record(self, value: float) -> bool:
        """Add one value and return whether it is a spike."""
        known = [v for v, _ in self.recent]
        spike = self.factor is not None and len(known) >= FEWEST and value > self.factor * median(known)
        self.recent.append((value, spike))
        while len(self.recent) > WINDOW:
            self.recent.popleft()
        self.total += spike
        return spike

    @property
    def persistent(self) -> bool:
        """True if at least ``PERSISTENT`` of the last values were spikes."""
        return sum(spike for _, spike in self.recent) >= PERSISTENT


@dataclass
class Health:
    """The health of a training in plain values for checkpoints; the same on every rank."""

    max_nonfinite: float
    limits: HealthSection | None = None
    """Limits of spikes and probes; None: only ``max_nonfinite`` applies."""
    lost: int = 0
    """Number of non-finite samples that were masked, over the whole run."""
    readings: list[ProbeResult] = field(default_factory=list)
    step_downs: list[dict[str, Any]] = field(default_factory=list)
    verdict: StopDecision | None = None

    def __post_init__(self) -> None:
        self.nonfinite = NonFinite(self.max_nonfinite)
        self.spikes = {name: Spikes(self.limits.spike if self.limits else None) for name in NORMS}

    def count(self, step: int, nonfinite: int, samples: int) -> str | None:
        """Add a step before its weights change; return the error if too many samples are non-finite, else None."""
        self.lost += nonfinite
        self.nonfinite.record(nonfinite, samples)
        return self.nonfinite.sentence(step) if self.nonfinite.exceeded else None

    def watch(self, scalars: Mapping[str, float]) -> int:
        """Add the norms of a step and return how many of them spiked."""
        return sum(s.record(scalars[name]) for name, s in self.spikes.items() if name in scalars)

    def unsteady(self, step: int) -> str | None:
        """Return the error if the tangent's norm keeps spiking, else None."""
        tangents = self.spikes["tangent_norm"]
        if not tangents.persistent or tangents.factor is None:
            return None
        return (
            f"step {step}: the tangent norm was more than train.health.spike = {tangents.factor:g} times its running"
            f" median in {PERSISTENT} of the last {len(tangents.recent)} steps that have one"
        )

    def step_down(self, step: int, before: str, after: str) -> None:
        """Record a switch of the tangent and clear the statistics that belong to the previous one."""
        self.step_downs.append({"step": step, "from": before, "to": after})
        self.nonfinite.counts.clear()
        self.spikes["tangent_norm"].recent.clear()

    def read(self, reading: ProbeResult, last: bool) -> None:
        """Add a probe and decide whether to stop."""
        self.readings.append(reading)
        if self.limits is not None:
            self.verdict = decide_stop(self.readings, self.limits, last)

    def state(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return {
            "lost": self.lost,
            "counts": list(self.nonfinite.counts),
            "spikes": {name: {"recent": list(s.recent), "total": s.total} for name, s in self.spikes.items()},
            "readings": [r._asdict() for r in self.readings],
            "step_downs": list(self.step_downs),
            "verdict": self.verdict._asdict() if self.verdict else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned, after a round trip through JSON."""
        self.lost = state["lost"]
        self.nonfinite.counts = deque((k, n) for k, n in state["counts"])
        for name, saved in state["spikes"].items():
            self.spikes[name].recent = deque((v, s) for v, s in saved["recent"])
            self.spikes[name].total = saved["total"]
        self.readings = [ProbeResult(**r) for r in state["readings"]]
        self.step_downs = list(state["step_downs"])
        self.verdict = of_state(state["verdict"])

    def facts(self) -> dict[str, Any]:
        """Return the contents of ``health.json``."""
        state = self.state()
        return {
            "nonfinite": self.lost,
            "spikes": {name: s.total for name, s in self.spikes.items()},
            **{key: state[key] for key in ("readings", "step_downs", "verdict")},
        }


def next_rung(tangent: str) -> str | None:
    """Return the next more robust tangent, or None at the end of ``LADDER``."""
    rung = LADDER.index(tangent) + 1
    return LADDER[rung] if rung < len(LADDER) else None
