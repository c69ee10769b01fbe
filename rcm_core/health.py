"""Non-finite samples are counted and left out, never repaired; too many stop the run or step the tangent down."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

LADDER = ("exact", "semi", "discrete")


@dataclass
class Health:
    """Share of non-finite samples over the last ``window`` steps against ``limit``."""

    limit: float
    window: int = 100
    counts: deque[tuple[int, int]] = field(default_factory=deque)

    def record(self, nonfinite: int, samples: int) -> None:
        """Adds one step."""
        self.counts.append((nonfinite, samples))
        while len(self.counts) > self.window:
            self.counts.popleft()

    @property
    def share(self) -> float:
        """Non-finite samples per sample over the window; 0 before the first step."""
        samples = sum(n for _, n in self.counts)
        return sum(k for k, _ in self.counts) / samples if samples else 0.0

    @property
    def exceeded(self) -> bool:
        """Whether the share is above the limit."""
        return self.share > self.limit

    def sentence(self, step: int) -> str:
        """What happened, what was allowed, what to do."""
        return (
            f"step {step}: {self.share:.1%} of the samples of the last {len(self.counts)} steps are not finite,"
            f" train.max_nonfinite allows {self.limit:.1%}; lower the learning rates, raise method.warmup, or set"
            " train.tangent to semi or discrete (train.tangent_fallback does so by itself)"
        )


def next_rung(tangent: str) -> str | None:
    """The next more robust way to the tangent, or None at the bottom of the ladder."""
    rung = LADDER.index(tangent) + 1
    return LADDER[rung] if rung < len(LADDER) else None
