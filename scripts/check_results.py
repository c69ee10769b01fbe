"""Whether a finished run of the embedded default reached what is promised: ``python scripts/check_results.py runs``.

With ``--no-timing`` speed is printed but decides nothing: for machines that others use at the same time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def checks(metrics: dict[str, Any]) -> list[tuple[str, float, str, float]]:
    """(what, found, <= or >=, allowed) for every promise; see the README's table."""

    def ratio(row: str, key: str, other: str = "teacher") -> float:
        return float(metrics[row][key]["value"] / metrics[other][key]["value"])

    rows = [
        ("Frechet at 4 steps / teacher", ratio("student_4", "frechet"), "<=", 1.1),
        ("Frechet at 1 step / teacher", ratio("student_1", "frechet"), "<=", 1.3),
        ("Frechet at 1 step / undistilled at 1 step", ratio("student_1", "frechet", "teacher_1"), "<=", 0.55),
        ("times faster at 4 steps", 1 / ratio("student_4", "seconds_per_sample"), ">=", 20.0),
        ("times faster at 1 step", 1 / ratio("student_1", "seconds_per_sample"), ">=", 60.0),
    ]
    for steps in (1, 2, 4):
        rows.append((f"accuracy at {steps} / teacher", ratio(f"student_{steps}", "accuracy"), ">=", 0.97))
        rows.append((f"diversity at {steps} / teacher", ratio(f"student_{steps}", "diversity"), ">=", 0.9))
    return rows


def main() -> int:
    """Prints every promise with what was found; 1 if one is missed."""
    timing = "--no-timing" not in sys.argv
    metrics = json.loads((Path(sys.argv[1]) / "evaluate/metrics.json").read_text())
    missed = 0
    for what, found, sense, allowed in checks(metrics):
        good = found <= allowed if sense == "<=" else found >= allowed
        missed += not good and (timing or not what.startswith("times faster"))
        print(f"{'ok  ' if good else 'MISS'} {what:45s} {found:8.3f} {sense} {allowed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
