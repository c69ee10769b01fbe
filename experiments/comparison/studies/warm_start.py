"""Student updates saved by a warm start when the teacher is updated.

``python -m experiments.comparison.studies.warm_start`` (``--run rcm-0.1 --refined 30 --rate 0.1 --seeds 0``).

The old teacher is the comparison's. The new one is the old one trained further, on other batches and noise. From the
new one a student is distilled cold, and warm (train.warm_start) from the student of the old one, in trainings of
several lengths, each with its own decay of the learning rate. Candidates are scored as in selection, on the validation
split. The result is the number of student updates after which the warm start is as good as the finished cold start
(experiments/comparison/page/warm_verdict.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from experiments.comparison.measurements import machine
from experiments.comparison.plan import PLANS, UPDATES, Plan, iterations_for, seeds_of, updates_in
from experiments.comparison.run_case import do_stages
from experiments.comparison.runner import Runner, Start, alone, in_subprocess
from experiments.comparison.studies.warm_teacher import change, refine, score_of
from experiments.comparison.workspaces import (
    FORMAT,
    SHARED,
    Home,
    ensure,
    executor_in,
    run_key,
    settle_run,
    share_stages,
    workspace,
    write_params,
)
from infra.interrupt import unwind_on_signals
from infra.params import compose
from rcm_core.config.sections import Params
from rcm_core.pipelines.teacher_folder import pipeline_of
from rcm_core.storage.files import write_json
from rcm_core.storage.run_folder import RunFolder
from rcm_core.training.distill import build_method

STUDIED = "rcm-0.1"
"""Run whose students are closest to the teacher."""
REFINED = (30, 300)
"""Steps of the teacher's update: a small update, and one that changes its weights more than the distillation does."""
RATES = (0.1, 1.0)
"""Learning rates of the warm student as shares of the cold start's: the advised one, and the full one."""


@dataclass(frozen=True)
class Study:
    """Settings of one study."""

    plan: Plan
    run: str
    """Run of the plan whose method and settings are used."""
    refined: int = max(REFINED)
    """Additional training steps of the new teacher."""
    rate: float = min(RATES)
    """Learning rate of the warm student as a share of the cold start's."""
    seed: int = 1
    """Seed of the additional steps; it differs from the old teacher's."""
    shares: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Lengths of the warm trainings, as shares of the cold one's student updates."""
    samples: int = 960
    """Samples per candidate and step count, on the validation split."""
    candidates: int = 10
    """Candidates of the cold training."""

    def warm(self, cold: Params) -> list[str]:
        """Return the overrides relative to the training ``cold``: a consistency model needs no tangent warm-up."""
        return ["method.warmup=0", f"train.lr.student={self.rate * cold.train.lr.student:g}"]


@dataclass
class Bench:
    """Workspaces of both teachers and the trainings in them."""

    study: Study
    home: Home
    start: Start = in_subprocess

    @property
    def root(self) -> Path:
        return self.home.work / self.study.plan.teacher / f"warm-start-{self.study.refined}"

    def prepare(self) -> None:
        """Prepare both teachers with their trajectories."""
        self.runner = Runner(self.study.plan, self.home, self.start)
        self.runner.prepare()
        self.old = self.home.shared_workspace(self.study.plan)
        self.new = workspace(self.root / "teacher")
        refined = self.root / "refined"
        study = self.study
        refine(self.runner.params[study.run], study.refined, study.seed, self.old, refined)
        self.params = self._compose(refined / "pipeline", ())
        write_params(self.new, self.params)
        for stage in SHARED:
            ensure(stage, self.params, self.new, executor_in(self.new))

    def _compose(self, source: Path, extra: Sequence[str]) -> Params:
        plan = self.study.plan
        run = plan.variant(self.study.run)
        base = [plan.teacher_override, f"method={run.preset}", *plan.overrides, *run.overrides]
        place = [f"teacher.source={source}", "teacher.mini=null", f"select.samples={self.study.samples}"]
        return compose(workspace(self.root / "compose"), [*base, *place, *extra])

    def student(self, seed: int) -> Path:
        """Return the folder of the old teacher's published student of ``seed``."""
        plan = self.study.plan
        _, path = self.runner.make_run(plan.variant(self.study.run), seed, UPDATES, ("publish",))
        return RunFolder.of(path).published

    def train(self, name: str, params: Params) -> dict[str, Any]:
        """Train on the new teacher; return the scores of all candidates and the selected one's on the test split."""
        path = workspace(self.root / name)
        share_stages(path, self.new)
        write_params(path, params)
        do_stages(params, path, self.root / "samples")
        method = build_method(params.method, params.train.tangent)
        run = RunFolder.of(path)
        selection, quality = run.selection(), run.quality()
        return {
            "key": run_key(params, path),
            "iterations": params.train.iterations,
            "updates": updates_in(method, params.train.iterations),
            "curve": [
                {"updates": updates_in(method, c["step"]), "ema": c["ema"], "score": c["score"]}
                for c in selection["candidates"]
            ],
            "rows": {k: row for k, row in quality.items() if k.startswith("student")},
        }

    def seed(self, seed: int) -> dict[str, Any]:
        """Run the cold start and all warm starts of one seed."""
        study = self.study
        total = study.plan.updates
        cold = self._settle(self.params, seed, total, study.candidates)
        found: dict[str, Any] = {
            "seed": seed,
            "cold": self.train(f"{study.run}-cold-{seed}", cold),
            "warm": [],
        }
        student = self.student(seed)
        found["moved"] = change(pipeline_of(self.old), student)
        found["untouched"] = score_of(student, self.params, self.new)
        earlier = {
            "student": str(student),
            "teacher": str(pipeline_of(self.old)),
            "endpoint": None,
        }
        base = self._compose(self.root / "refined/pipeline", study.warm(self.params))
        for share in study.shares:
            updates = max(1, round(share * total))
            params = self._settle(base, seed, updates, max(1, round(share * study.candidates)))
            train = params.train.model_dump(mode="json") | {"warm_start": earlier}
            whole = params.model_dump(mode="json") | {"train": train}
            name = f"{study.run}-warm-{seed}-{share:g}-{study.rate:g}"
            made = self.train(name, Params.model_validate_json(json.dumps(whole)))
            found["warm"].append({"share": share, **made})
        return found

    def _settle(self, params: Params, seed: int, updates: int, candidates: int) -> Params:
        iterations = iterations_for(build_method(params.method, params.train.tangent), updates)
        made = settle_run(params, seed, iterations)
        every = {"candidate_every": -(-iterations // candidates)}
        return made.model_copy(update={"train": made.train.model_copy(update=every)})


def study_results(study: Study, home: Home, start: Start, seeds: Sequence[int]) -> None:
    """Write ``warm-start/<run>-<refined>-<rate>.json`` after every seed."""
    bench = Bench(study, home, start)
    bench.prepare()
    found = []
    for seed in seeds:
        found.append(bench.seed(seed))
        print(
            f"warm start, {study.refined} steps, learning rate x {study.rate:g}, seed {seed}: done",
            flush=True,
        )
        facts = {
            "format": FORMAT,
            "teacher": study.plan.teacher,
            "run": study.run,
            "refined": study.refined,
            "rate": study.rate,
            "change": change(pipeline_of(bench.old), pipeline_of(bench.new)),
            "metric": bench.params.select.metric,
            "samples": study.samples,
            "warm": study.warm(bench.params),
            "seeds": found,
            "machine": machine(),
        }
        name = f"{study.run}-{study.refined}-{study.rate:g}.json"
        write_json(home.results.parent / "warm-start" / name, facts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study. Exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.comparison.studies.warm_start", description=__doc__
    )
    parser.add_argument("--run", default=STUDIED, help=f"run of mini's plan; default: {STUDIED}")
    parser.add_argument(
        "--refined",
        type=int,
        choices=REFINED,
        help="steps of the teacher's update; default: all of the study's",
    )
    parser.add_argument(
        "--rate",
        type=float,
        choices=RATES,
        help="learning rate of the warm student as a share of the cold one's; default: all of the study's",
    )
    parser.add_argument("--seeds", default="", help="seeds, as in 0,1; default: the plan's")
    options = parser.parse_args(arguments)
    plan = PLANS["mini"]

    def work(home: Home) -> None:
        sizes = [options.refined] if options.refined else REFINED
        rates = [options.rate] if options.rate else RATES
        for refined, rate in product(sizes, rates):
            study = Study(plan, plan.variant(options.run).name, refined, rate)
            study_results(study, home, in_subprocess, seeds_of(options.seeds) or plan.seeds)

    return alone(work)


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
