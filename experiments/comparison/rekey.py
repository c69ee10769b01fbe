"""Give results of an older commit the keys of the current code, after a proof that it computes the same.

    git worktree add /tmp/then COMMIT
    # the commit of the results, and here
    cd /tmp/then && python .../experiments/comparison/tiny_rows.py /tmp/then.json mini scm kd
    python experiments/comparison/tiny_rows.py /tmp/now.json mini scm kd
    python -m experiments.comparison.rekey mini --proof /tmp/then.json /tmp/now.json
    # results made by code whose numbers are known to be today's
    python -m experiments.comparison.rekey mini --only dmd2,ect

Rows of the proof that differ are listed, and their results are not changed: ``make compare`` runs them again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.comparison.calibrate import known_entries
from experiments.comparison.plan import BUDGETS, Plan, iterations_for, plan_of
from experiments.comparison.workspaces import (
    Home,
    compose_variants,
    cost_key,
    digest,
    ensure,
    executor_in,
    run_key,
    settle_run,
)
from rcm_core.config.sections import Params
from rcm_core.errors import exit_for_bad_input
from rcm_core.storage.files import write_json
from rcm_core.training.distill import build_method

DIFFERENT = 1
"""Exit status if a row of the proof differs."""


def differences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the names of values that are not bitwise equal in both commits; values that are new now do not count."""
    return [name for name, value in then.items() if now.get(name) != value]


def proven(then: Path, now: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return the rows that are equal in two files of ``tiny_rows``, and for the other rows the names that differ."""
    first, second = (json.loads(path.read_text()) for path in (then, now))
    found = {name: differences(row, second.get(name, {})) for name, row in first.items()}
    return [n for n, left in found.items() if not left], {n: left for n, left in found.items() if left}


def rekey(plan: Plan, home: Home, names: Sequence[str], same_protocol: bool = False) -> int:
    """Write the current keys into the results of ``names`` and their costs; return the number of changed keys.

    ``same_protocol``: also write the protocol of the teacher's own row, from which theirs may differ by another
    machine's rounding of the judge's weights.
    """
    changed = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Home(Path(folder), home.results)
        params = compose_variants(plan, place)
        space = place.work / plan.teacher / "compose"
        anchor = params[plan.anchor]
        ungated = anchor.model_copy(update={"teacher": anchor.teacher.model_copy(update={"gate": None})})
        ensure("teacher", ungated, space, executor_in(space))
        for name in names:
            for budget in BUDGETS:
                for path in sorted((home.results / plan.teacher / budget).glob(f"{name}-[0-9].json")):
                    changed += _rekey_result(path, params[name], space, same_protocol)
            changed += _rekey_cost(home, plan, name, params[name], space)
    return changed


def _rekey_result(path: Path, params: Params, space: Path, same_protocol: bool) -> bool:
    result = json.loads(path.read_text())
    today = settle_run(params, result["seed"], result["iterations"])
    keys = {
        "key": run_key(today, space),
        "params": digest(today.model_dump(mode="json", exclude={"report", "publish"})),
        "method": today.method,  # whose keys may have new names
    }
    if same_protocol:
        keys["protocol"] = json.loads((path.parents[1] / "teacher.json").read_text())["protocol"]["hash"]
    return _write(path, result, keys)


def _rekey_cost(home: Home, plan: Plan, name: str, params: Params, space: Path) -> bool:
    place = home.results / plan.teacher / "calibration.json"
    if name not in known_entries(place):
        return False
    calibration = json.loads(place.read_text())
    method = build_method(params.method, params.train.tangent)
    today = settle_run(params, 0, iterations_for(method, plan.updates))
    entry = calibration["entries"][name]
    if entry["key"] == cost_key(today, space):
        return False
    calibration["entries"][name] = entry | {"key": cost_key(today, space)}
    write_json(place, calibration)
    return True


def _write(path: Path, result: dict[str, Any], keys: dict[str, str]) -> bool:
    if result | keys == result:
        return False
    write_json(path, result | keys)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the keys. Exit status 0; 1 if a row of the proof differs; 2 with one sentence for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.comparison.rekey",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("teacher", help="mini or scenes")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--proof", nargs=2, type=Path, metavar=("THEN", "NOW"))
    chosen.add_argument("--only", help="names of runs, separated by commas")
    parser.add_argument(
        "--same-protocol",
        action="store_true",
        help="also write the protocol of teacher.json, which differs only by rounding of the judge's weights",
    )
    options = parser.parse_args(arguments)
    with exit_for_bad_input():
        plan = plan_of(options.teacher)
        equal, different = proven(*options.proof) if options.proof else (options.only.split(","), {})
        for name in equal:
            plan.variant(name)
        changed = rekey(plan, Home.usual(), equal, options.same_protocol)
    print(f"{', '.join(equal) or 'no run'}: {changed} keys are new")
    for name, left in different.items():
        print(f"{name}: {len(left)} numbers differ, the first in {left[0]}; its results are not changed")
    return DIFFERENT if different else 0


if __name__ == "__main__":
    sys.exit(main())
