"""How strong matching is beside consistency in the comparison's rCM.

``python -m experiments.comparison.studies.balance``.

Of the student's two gradients in its prediction: matching's (the mean of ``dmd_gradient`` over training, times its
weight) over the longest that a normalised tangent lets consistency's be; docs/maths.md, section 17.
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
    """Of seed 0 at equal updates, which is made if it is not there."""
    runner = Runner(plan, home, start)
    runner.prepare()
    params, workspace = runner.make_run(plan.variant(RUN), 0, UPDATES)
    matching = params.method["dmd_weight"] * mean_gradient(RunFolder.of(workspace).curves)
    consistency = params.method["consistency_weight"]
    # both losses' gradients are twice their weight times the length of what they are made of
    return {"matching": 2 * matching, "consistency": 2 * consistency, "share": matching / consistency}


def mean_gradient(curves: Path) -> float:
    """Of all windows of a training that have one."""
    return float(pd.read_csv(curves)["dmd_gradient"].mean())


def write_balance(home: Home) -> None:
    """Writes docs/results/balance.json."""
    found = {name: balance(plan, home, in_subprocess) for name, plan in PLANS.items()}
    place = home.results.parent / "balance.json"
    write_json(place, {"format": FORMAT, "run": RUN, "teachers": found, "machine": machine()})
    for name, each in found.items():
        print(f"{name}: matching has {each['share']:.1%} of consistency's gradient")


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(alone(write_balance))
