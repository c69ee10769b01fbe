"""Strength of distribution matching relative to consistency in the comparison's rCM.

``python -m experiments.comparison.studies.balance``.

The ratio of the student's two gradients with respect to its prediction: that of matching (the mean of ``dmd_gradient``
over training, times its weight) over the largest that a normalised tangent allows for consistency; docs/maths.md,
section 17.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.comparison.measurements import machine
from experiments.comparison.plan import PLANS, UPDATES, Plan
from experiments.comparison.runner import Runner, Start, alone, in_subprocess
from experiments.comparison.workspaces import FORMAT, Home
from infra.interrupt import unwind_on_signals
from rcm_core.storage.files import write_json
from rcm_core.storage.run_folder import RunFolder

RUN = "rcm"


def balance(plan: Plan, home: Home, start: Start) -> dict[str, Any]:
    """Return the ratio for seed 0 at equal updates; do the run if its result is missing."""
    runner = Runner(plan, home, start)
    runner.prepare()
    params, workspace = runner.make_run(plan.variant(RUN), 0, UPDATES)
    matching = params.method["dmd_weight"] * mean_gradient(RunFolder.of(workspace).curves)
    consistency = params.method["consistency_weight"]
    # the gradient of either loss is twice its weight times the norm of its vector
    return {"matching": 2 * matching, "consistency": 2 * consistency, "share": matching / consistency}


def mean_gradient(curves: Path) -> float:
    """Return the mean over all windows of a training that have a value."""
    return float(pd.read_csv(curves)["dmd_gradient"].mean())


def write_balance(home: Home) -> None:
    """Write docs/results/balance.json."""
    found = {name: balance(plan, home, in_subprocess) for name, plan in PLANS.items()}
    place = home.results.parent / "balance.json"
    write_json(place, {"format": FORMAT, "run": RUN, "teachers": found, "machine": machine()})
    for name, each in found.items():
        print(f"{name}: matching has {each['share']:.1%} of consistency's gradient")


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(alone(write_balance))
