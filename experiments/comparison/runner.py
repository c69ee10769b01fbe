"""Run a plan: finished runs are skipped, interrupted ones resume from their checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from experiments.comparison import calibrate, run_case
from experiments.comparison.calibrate import Calibration, affordable, known_entries
from experiments.comparison.plan import TIME, UPDATES, Plan, Variant, iterations_for
from experiments.comparison.run_case import Case
from experiments.comparison.workspaces import (
    ROOT,
    SHARED,
    Home,
    compose_variants,
    cost_key,
    digest,
    ensure,
    executor_in,
    run_key,
    run_workspace,
    settle_run,
    workspace,
    write_params,
)
from infra.state import hold
from rcm_core.config.sections import Params
from rcm_core.errors import BAD_INPUT, InputError
from rcm_core.storage.files import json_text, write_json
from rcm_core.training.distill import build_method

Job = Case | Calibration
Start = Callable[[Job, Path], None]
"""Function that does a job; the path is that of its JSON. Raises InputError if the job fails."""
RUNNING: set[subprocess.Popen[bytes]] = set()
"""Processes of running jobs; they end with this process."""
STOPPED = [sign for number in (signal.SIGINT, signal.SIGTERM) for sign in (128 + number, -number)]
"""Exit statuses of a process that was stopped by a signal."""


def in_process(job: Job, place: Path) -> None:  # noqa: ARG001
    """Run the job in this process; the measured memory is then that of all runs together."""
    if isinstance(job, Case):
        run_case.execute(job)
    else:
        calibrate.calibrate(job)


def in_subprocess(job: Job, place: Path) -> None:
    """Run the job in its own process, which ends with this one; if it is stopped, this process stops too."""
    module = "run_case" if isinstance(job, Case) else "calibrate"
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", f"experiments.comparison.{module}", str(place)], cwd=ROOT, env=env
    )
    RUNNING.add(process)
    try:
        status = process.wait()
    finally:
        RUNNING.discard(process)
        if process.poll() is None:
            process.terminate()
            process.wait()
    if status in STOPPED:
        raise KeyboardInterrupt(f"{place.stem} was stopped")
    if status:
        raise InputError(f"{place.stem} ended with status {status}; fix the error above and start again")


@dataclass
class Runner:
    """One teacher's plan."""

    plan: Plan
    home: Home
    start: Start = in_subprocess
    rounds: int = calibrate.ROUNDS
    jobs: int = 1
    """Simultaneous runs; the calibration always runs alone."""
    failed: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Compose the parameters of all variants; make teacher, prompts and trajectories once for all runs."""
        self.params = compose_variants(self.plan, self.home)
        anchor = self.params[self.plan.anchor]
        shared = workspace(self.home.shared_workspace(self.plan))
        write_params(shared, anchor)
        executor = executor_in(shared)
        for stage in SHARED:
            if ensure(stage, anchor, shared, executor):
                print(f"{self.plan.teacher}: {stage} is made", flush=True)

    def run(self, variants: Sequence[Variant], seeds: Sequence[int], budgets: Sequence[str]) -> None:
        """Run all variants seed by seed, so that every method has one result before any has two."""
        self.prepare()
        for budget in budgets:
            planned = [variant for variant in variants if budget in variant.budgets]
            if budget == TIME and planned:
                self._calibrate(planned)
            self._all([(variant, seed, budget) for seed, variant in product(seeds, planned)])

    def _all(self, runs: Sequence[tuple[Variant, int, str]]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            found = [pool.submit(self.run_one, *each) for each in runs]
            try:
                for each in as_completed(found):
                    each.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(RUNNING):
                    process.terminate()
                raise

    def iterations(self, variant: Variant, budget: str) -> int:
        """Return the iterations of ``variant`` in ``budget``; for "time" it must have been calibrated."""
        if budget == UPDATES:
            return iterations_for(self._method(variant.name), self.plan.updates)
        anchor = iterations_for(self._method(self.plan.anchor), self.plan.updates)
        if variant.name == self.plan.anchor:
            return anchor
        return affordable(known_entries(self._calibration)[variant.name], anchor)

    def run_one(self, variant: Variant, seed: int, budget: str) -> None:
        """Do one run unless its result exists; a failure is recorded, and the other runs continue."""
        plan, home = self.plan, self.home
        params = settle_run(self.params[variant.name], seed, self.iterations(variant, budget))
        place = run_workspace(home, plan, variant, params)
        result = home.result(plan, budget, variant.name, seed)
        what = f"{plan.teacher} {budget} {variant.name} seed {seed}"
        if result.is_file() and json.loads(result.read_text()).get("key") == run_key(params, place):
            print(f"{what}: there", flush=True)
            return
        print(f"{what}: {params.train.iterations} iterations", flush=True)
        case = Case(
            plan.teacher, variant.name, variant.preset, variant.words, budget, seed, str(place),
            str(home.samples(plan)), str(result),
        )  # fmt: skip
        failure = home.failure(plan, budget, variant.name, seed)
        try:
            self._start(case, place / f"{budget}.json")
            failure.unlink(missing_ok=True)
        except InputError as error:
            self.failed.append(f"{what}: {error}")
            write_json(failure, {"name": variant.name, "seed": seed, "failed": str(error)})
            print(f"{what}: FAILED, {error}", flush=True)

    def make_run(
        self, variant: Variant, seed: int, budget: str, further: tuple[str, ...] = ()
    ) -> tuple[Params, Path]:
        """Do a run and ``further`` stages; return parameters and workspace. InputError if it fails."""
        self.run_one(variant, seed, budget)
        if self.failed:
            raise InputError(f"the student could not be made: {self.failed[-1]}")
        params = settle_run(self.params[variant.name], seed, self.iterations(variant, budget))
        path = run_workspace(self.home, self.plan, variant, params)
        # the result may exist without its workspace: then do the run here
        run_case.do_stages(params, path, self.home.samples(self.plan), further)
        return params, path

    def _calibrate(self, variants: Sequence[Variant]) -> None:
        """Measure the variants that have no cost yet, or a cost with other parameters or code."""
        known = known_entries(self._calibration)
        anchor = self.plan.variant(self.plan.anchor)
        keys, places = {}, {}
        for variant in dict.fromkeys([anchor, *variants]):
            # seed 0 and the iterations of the other budget: neither changes the cost of an iteration
            params = settle_run(self.params[variant.name], 0, self.iterations(variant, UPDATES))
            place = run_workspace(self.home, self.plan, variant, params)
            keys[variant.name], places[variant.name] = cost_key(params, place), str(place)
        missing = [n for n, key in keys.items() if known.get(n, {}).get("key") != key]
        if missing:
            names = list(dict.fromkeys([anchor.name, *missing]))
            print(f"{self.plan.teacher}: measuring {', '.join(names)} in turn", flush=True)
            chosen = {n: places[n] for n in names}
            job = Calibration(anchor.name, chosen, keys, str(self._calibration), self.rounds)
            self._start(job, self.home.work / self.plan.teacher / f"calibration-{digest(chosen)}.json")

    @property
    def _calibration(self) -> Path:
        return self.home.results / self.plan.teacher / "calibration.json"

    def _start(self, job: Job, place: Path) -> None:
        write_json(place, _plain(job))
        self.start(job, place)

    def _method(self, name: str) -> Any:
        params: Params = self.params[name]
        return build_method(params.method, params.train.tangent)


def alone(work: Callable[[Home], None]) -> int:
    """Run ``work`` at the usual place, without other comparisons; return 0, or 2 with one sentence for bad input."""
    home = Home.usual()
    try:
        with hold(home.work / "running"):
            work(home)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def state(
    plan: Plan, home: Home, variants: Sequence[Variant], seeds: Sequence[int], budgets: Sequence[str]
) -> Iterator[str]:
    """Yield a line per run of ``plan``: whether its result exists, with any parameters and code."""
    for budget in budgets:
        for variant in variants:
            for seed in seeds if budget in variant.budgets else ():
                there = home.result(plan, budget, variant.name, seed).is_file()
                yield f"{plan.teacher} {budget} {variant.name} {seed}: {'there' if there else 'to do'}"


def _plain(job: Job) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json_text(job._asdict()))
    return values
