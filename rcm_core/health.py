"""Non-finite samples are counted and left out, never repaired; too many stop the run or step the tangent down."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

LADDER = ("exact", "semi", "discrete")


@dataclass
class Health:
    """Non-finite samples of the last ``window`` steps; at most the share ``limit`` of a full window's may be.

    A window that has just begun is held to the same number, so one bad sample in the first step stops nothing.
    """

    limit: float
    window: int = 100
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


def next_rung(tangent: str) -> str | None:
    """The next more robust way to the tangent, or None at the bottom of the ladder."""
    rung = LADDER.index(tangent) + 1
    return LADDER[rung] if rung < len(LADDER) else None
