"""Check the promised results of a finished run of the built-in default: ``python scripts/acceptance.py runs``.

With ``--no-timing`` speed is printed but decides nothing: for machines that others use at the same time. With
``--significant`` a promise is missed only if the whole 95 % interval of the student's number is beyond it: on another
kind of processor the same run rounds differently, and then its figures scatter within their intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rcm_core.storage.run_folder import RunFolder


class Promise(NamedTuple):
    what: str
    found: float
    best: float
    """Return the end of the interval that is nearest to the promise."""
    sense: str
    allowed: float
    timing: bool = False

    def is_kept(self, significant: bool) -> bool:
        found = self.best if significant else self.found
        return found <= self.allowed if self.sense == "<=" else found >= self.allowed


def promises(metrics: dict[str, Any]) -> list[Promise]:
    """See the README's table. In one step the recipe is for a student near its teacher (docs/decisions/0005)."""

    def at_most(what: str, row: str, allowed: float, other: str = "teacher", key: str = "frechet") -> Promise:
        ours, theirs = metrics[row][key], metrics[other][key]["value"]
        return Promise(what, ours["value"] / theirs, ours["low"] / theirs, "<=", allowed)

    def at_least(what: str, row: str, key: str, allowed: float) -> Promise:
        ours, theirs = metrics[row][key], metrics["teacher"][key]["value"]
        return Promise(what, ours["value"] / theirs, ours["high"] / theirs, ">=", allowed)

    def faster(steps: int, allowed: float) -> Promise:
        ours, theirs = (metrics[row]["seconds_per_sample"] for row in (f"student_{steps}", "teacher"))
        found, best = theirs["value"] / ours["value"], theirs["value"] / ours["low"]
        return Promise(f"times faster at {steps}", found, best, ">=", allowed, timing=True)

    found = [
        at_most("Frechet at 4 steps / teacher", "student_4", 1.1),
        at_most(
            "distance to the teacher at 1 step / undistilled",
            "student_1",
            0.55,
            "teacher_1",
            "frechet_teacher",
        ),
        faster(4, 20.0),
        faster(1, 60.0),
    ]
    for steps in (1, 2, 4):
        found.append(at_least(f"accuracy at {steps} / teacher", f"student_{steps}", "accuracy", 0.97))
        found.append(at_least(f"diversity at {steps} / teacher", f"student_{steps}", "diversity", 0.9))
    return found


def main() -> int:
    """Print every promise with its measured value; return 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--significant", action="store_true")
    options = parser.parse_args()
    missed = 0
    for promise in promises(json.loads(RunFolder(options.runs).metrics_file.read_text())):
        kept = promise.is_kept(options.significant)
        missed += not kept and not (promise.timing and options.no_timing)
        word = "ok  " if promise.is_kept(significant=False) else "near" if kept else "MISS"
        print(f"{word} {promise.what:45s} {promise.found:8.3f} {promise.sense} {promise.allowed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
