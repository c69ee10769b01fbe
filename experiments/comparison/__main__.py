"""The comparison:
``python -m experiments.comparison [--teacher mini] [--only scm,rcm] [--seeds 0] [--budget updates]``.

Results go to docs/results/compare/<teacher>/<budget>/<run>-<seed>.json; the working files stay in .rcm/compare. The
command resumes after an interruption and skips each run whose result has the same parameters, teacher, data and code.
Every run uses one thread: several runs at once finish sooner than one after another on all cores.
``python -m experiments.comparison.page`` writes docs/results.md.
"""

from __future__ import annotations

import argparse
import sys

from experiments.comparison.plan import BUDGETS, PLANS, choose_variants, plan_of, seeds_of
from experiments.comparison.runner import Runner, state
from experiments.comparison.workspaces import Home
from infra.interrupt import unwind_on_signals
from infra.state import hold
from rcm_core.errors import BAD_INPUT, InputError

FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison. Exit status 0, 1 if a run failed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.comparison", description=__doc__)
    parser.add_argument("--teacher", action="append", help=f"one of {', '.join(PLANS)}; default: all")
    parser.add_argument("--only", default="", help="names of runs, separated by commas; default: all")
    parser.add_argument("--seeds", default="", help="seeds, as in 0,1; default: the plan's")
    parser.add_argument("--budget", choices=[*BUDGETS, "both"], default="both")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once; default: 2")
    parser.add_argument("--list", action="store_true", help="only list finished and pending runs")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def _run(options: argparse.Namespace) -> int:
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected the number of simultaneous runs, 1 or more")
    home = Home.usual()
    budgets = BUDGETS if options.budget == "both" else (options.budget,)
    failed: list[str] = []
    for teacher in options.teacher or PLANS:
        plan = plan_of(teacher)
        variants = choose_variants(plan, [name for name in options.only.split(",") if name])
        if not any(budget in variant.budgets for variant in variants for budget in budgets):
            raise InputError(
                f"{options.only} is not planned at equal {options.budget}; omit --budget, or choose another run"
            )
        seeds = seeds_of(options.seeds) or plan.seeds
        if options.list:
            print("\n".join(state(plan, home, variants, seeds, budgets)))
            continue
        runner = Runner(plan, home, jobs=options.jobs)
        with hold(home.work / "running"):  # two at a time would slow each other
            runner.run(variants, seeds, budgets)
        failed += runner.failed
    print("".join(f"failed: {line}\n" for line in failed), end="")
    return FAILED if failed else 0


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
