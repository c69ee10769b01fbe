"""Training curves: averages over windows of steps, kept in the checkpoint so that a resumed run writes the same."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COLUMNS = (
    "step", "loss", "tangent_norm", "gradient_norm", "nonfinite", "spikes", "fake_loss", "dmd_gradient", "off_loss",
    "critic_loss", "adversarial_loss", "probe_score", "brightness", "contrast",
)  # fmt: skip
COUNTED = ("nonfinite", "spikes")
"""Columns that are summed over a window; all others are averaged."""


@dataclass
class Curves:
    """Closed rows, and sums and counts of the open window."""

    rows: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, scalars: Mapping[str, float]) -> None:
        """Add one step; a scalar that the step lacks does not count towards its mean."""
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def close(self, step: int) -> dict[str, float]:
        """End the window at ``step`` and return its means, and its sums of the columns ``COUNTED``."""
        row = {
            name: total if name in COUNTED else total / self.counts[name] for name, total in self.sums.items()
        }
        self.mark(step, row)
        self.sums, self.counts = {}, {}
        return row

    def mark(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write ``scalars`` into the row of ``step``, the last row or a new one."""
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1].update(scalars)
        else:
            self.rows.append({"step": step, **scalars})

    def line(
        self, step: int, iterations: int, scalars: Mapping[str, float], rate: float | None = None
    ) -> str:
        """Return one line for the terminal."""
        shown = "  ".join(f"{name} {scalars[name]:.4g}" for name in COLUMNS[1:] if name in scalars)
        return f"step {step}/{iterations}  {shown}" + (f"  {rate:.0f} samples/s" if rate is not None else "")

    def state(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write a CSV with the columns ``COLUMNS``; a scalar that a window lacks is an empty cell."""
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.8g}" if k != "step" else int(v) for k, v in row.items()} for row in self.rows
            )
