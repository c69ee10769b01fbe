"""Early stopping: decide from the probes of a student whether its training stops, and why.

``Trainer.ended`` reads the decision. Two errors also stop a training: too many non-finite samples
(``rcm_core.monitoring.health``) and a non-finite gradient (``rcm_core.training.parameter_updates``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rcm_core.config.sections import HealthSection

GAIN = 0.01
"""Minimum relative gain of an improvement: near the end of a cosine schedule, or with a learning rate near zero,
scores keep improving by tiny amounts."""


class ProbeResult(NamedTuple):
    """One probe (rcm_core/training/probe.py); None stands for a number that is not finite."""

    step: int
    score: float | None
    """Energy distance to the teacher (E70); lower is better."""
    brightness: float | None
    """Change of the mean relative to the teacher, in units of its contrast, mean over channels (E71)."""
    contrast: float | None
    """Change of the standard deviation in the same units."""
    drift: float | None
    """The larger of both magnitudes, averaged over channels, so that opposite changes do not cancel."""

    @classmethod
    def of(cls, step: int, values: Sequence[float]) -> ProbeResult:
        """Build the result of ``step`` from ``values`` in the order of the fields."""
        return cls(step, *(v if math.isfinite(v) else None for v in values))

    def scalars(self) -> dict[str, float]:
        """Return the values for the curves."""
        named = {"probe_score": self.score, "brightness": self.brightness, "contrast": self.contrast}
        return {name: value for name, value in named.items() if value is not None}


class StopDecision(NamedTuple):
    """A decision to stop training."""

    kind: str
    """"plateau": the student no longer improves. "collapse" or "drift": the student is unusable."""
    step: int
    since: int
    """The first step at which the student was unusable; candidates from there on are deleted."""
    reason: str

    @property
    def useless(self) -> bool:
        """True if the current student is unusable."""
        return self.kind != "plateau"


def decide_stop(readings: Sequence[ProbeResult], limits: HealthSection, last: bool) -> StopDecision | None:
    """Return the decision after the newest of ``readings``; the first is that of the untrained student.

    A collapse and a drift need two consecutive probes, because one alone may be chance. A probe at the ``last`` step
    reports no plateau, and confirms nothing if it is less than half an interval after the previous one.
    """
    if len(readings) < 3:
        return None
    if last and limits.probe_every and 2 * (readings[-1].step - readings[-2].step) < limits.probe_every:
        return None
    failure = _collapse(readings, limits) or _drift(readings, limits)
    return failure or (None if last else _plateau(readings, limits))


def _collapse(readings: Sequence[ProbeResult], limits: HealthSection) -> StopDecision | None:
    """Detect scores much worse than the best before; the best counts as at least the noise of its estimate."""
    if limits.collapse is None:
        return None
    *before, first, second = readings
    best = min((r for r in before if r.score is not None), key=lambda r: r.score or 0.0, default=None)
    allowed = limits.collapse * max(best.score or 0.0, 1 / limits.probe_samples) if best else math.inf
    if any(r.score is not None and r.score <= allowed for r in (first, second)):
        return None
    scores = f"{_number(first.score)} at step {first.step} and {_number(second.score)} at step {second.step}"
    compared = f" (best {_number(best.score)} at step {best.step})" if best else ""
    reason = (
        f"the validation score was {scores}, beyond train.health.collapse = {limits.collapse:g}{compared}"
    )
    return StopDecision("collapse", second.step, first.step, reason)


def _drift(readings: Sequence[ProbeResult], limits: HealthSection) -> StopDecision | None:
    """Detect brightness or contrast too far from the teacher's, and farther than the untrained student's."""
    if limits.drift is None:
        return None
    *_, first, second = readings
    allowed = max(limits.drift, readings[0].drift or 0.0)
    if any(r.drift is not None and r.drift <= allowed for r in (first, second)):
        return None
    bound = (
        f"train.health.drift = {limits.drift:g}"
        if allowed == limits.drift
        else f"{allowed:.4g}, the value before training"
    )
    reason = (
        f"brightness or contrast of the samples was {_number(first.drift)} of the teacher's contrast away at step"
        f" {first.step} and {_number(second.drift)} at step {second.step}, beyond {bound}"
        f" (brightness {_number(second.brightness)}, contrast {_number(second.contrast)})"
    )
    return StopDecision("drift", second.step, first.step, reason)


def _plateau(readings: Sequence[ProbeResult], limits: HealthSection) -> StopDecision | None:
    """Detect that none of the last ``patience`` probes improved by at least ``GAIN``."""
    if limits.patience is None:
        return None
    best, waited = readings[0], 0
    for reading in readings[1:]:
        if _improves(reading.score, best.score, 1 / limits.probe_samples):
            best, waited = reading, 0
        else:
            waited += 1
    if waited < limits.patience:
        return None
    probes = f"{limits.patience} probe{'s' if limits.patience > 1 else ''}"
    reason = (
        f"the validation score has not improved for {probes} (best {_number(best.score)} at step {best.step})"
    )
    return StopDecision("plateau", readings[-1].step, readings[-1].step, reason)


def _improves(score: float | None, best: float | None, noise: float) -> bool:
    if score is None or best is None:
        return score is not None
    return score < best - GAIN * max(abs(best), noise)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def sentence(verdict: StopDecision, iterations: int) -> str:
    """Return the decision as one line for the terminal and the report."""
    at = f"Training stopped at step {verdict.step:,} of {iterations:,}"
    if not verdict.useless:
        return f"{at}: {verdict.reason}."
    fault = "the student collapsed" if verdict.kind == "collapse" else "the student's samples drifted away"
    return f"{at} because {fault}: {verdict.reason}. Candidates from before step {verdict.since:,} are kept."


def of_state(state: dict[str, Any] | None) -> StopDecision | None:
    """Return a decision that was saved as JSON."""
    return None if state is None else StopDecision(**state)
