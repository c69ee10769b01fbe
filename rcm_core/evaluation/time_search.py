"""Greedy search for the times of the student's sampler: the first time, then, with it frozen, the next.

SANA-Sprint (arXiv 2503.09641) searches its few-step times in this order. All candidates are scored on the validation
split with the same prompts, ids and seed, so that they differ only by their times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rcm_core.config.sections import Params
from rcm_core.diffusion.trigflow import NOISE_ANGLE
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.metric import metric_of
from rcm_core.evaluation.validation import Scale, scale_of, score_job, validation_job
from rcm_core.execution import Executor
from rcm_core.record import hash_inputs
from rcm_core.samplers.few_step import Sampler
from rcm_core.samplers.jobs import Job
from rcm_core.storage.run_folder import RELATIVE, RunFolder

Angles = tuple[float, ...]
FIRST = (NOISE_ANGLE, *(round(math.atan(s), 4) for s in (1600, 800, 400, 200, 100, 50, 25, 12, 6)))
"""Candidates for the first time: tan t, EDM's noise level, falls to 6 (t = 1.4)."""
LATER = 15
"""Grid size of later times: each is n / 15 of the previous one."""
INPUTS = [RELATIVE.teacher_file, RELATIVE.prompts_file, RELATIVE.student]


@dataclass(frozen=True)
class Round:
    """The search for one number of steps: candidates and outcome."""

    steps: int
    found: Angles
    """The best candidate; the next round keeps it and adds a time."""
    now: Angles | None
    """The parameters' times for this number of steps; None if they have none."""
    advised: Angles
    """The better of ``found`` and ``now``."""
    near: tuple[Angles, ...]
    """Other candidates with a score within the interval of ``advised``: statistically equal."""
    scores: dict[Angles, Estimate]


@dataclass(frozen=True)
class Tuning:
    """The outcome of a search, with its student and metric."""

    student: str
    metric: str
    samples: int
    seed: int
    inputs: dict[str, str]
    sampler: Sampler
    """The advised sampler; times for step counts outside the search are unchanged."""
    rounds: tuple[Round, ...]

    def record(self) -> dict[str, Any]:
        """Return the outcome for JSON, with lists of pairs for mappings whose keys are tuples."""
        rounds = [
            asdict(r) | {"scores": [{"angles": a, "score": s} for a, s in r.scores.items()]}
            for r in self.rounds
        ]
        return {**{k: getattr(self, k) for k in ("student", "metric", "samples", "seed", "inputs")},
                "sampler": asdict(self.sampler), "rounds": rounds}  # fmt: skip


def candidates(frozen: Angles) -> list[Angles]:
    """Return the candidates: ``frozen`` plus one more time each, in descending order, rounded to four digits."""
    if not frozen:
        return [(angle,) for angle in FIRST]
    return [(*frozen, float(f"{frozen[-1] * n / LATER:.4g}")) for n in range(LATER - 1, 0, -1)]


def tune(params: Params, workspace: Path, executor: Executor, steps: int, samples: int | None) -> Tuning:
    """Search times for 1 to ``steps`` steps of the chosen student by ``select.metric``.

    ``samples`` None: ``select.samples``. InputError without a chosen student.
    """
    run = RunFolder.of(workspace)
    chosen = run.selection()["choice"]["name"]
    inputs = hash_inputs(workspace, INPUTS)
    section = params.select.model_copy(update={"samples": samples or params.select.samples})
    now = Sampler.of(params.sampler.kind, params.sampler.times)
    network = str(run.student)
    whole = replace(
        validation_job(section, workspace, executor.state_root / "cache"), network=network, sampler=now
    )
    scale = scale_of(params.model_copy(update={"select": section}), workspace, executor)
    frozen: Angles = ()
    rounds = []
    for count in range(1, steps + 1):
        current = now.angles(count) if count in now.steps else None
        tried = candidates(frozen)
        both = list(dict.fromkeys([*tried, *([current] if current else [])]))
        scores = _scores(whole, both, scale, executor)
        rounds.append(judge_round(section.metric, scores, tried, current))
        frozen = rounds[-1].found
    lists = {len(angles): angles for angles in now.times} | {r.steps: r.advised for r in rounds}
    sampler = Sampler.of(now.kind, [lists[count] for count in sorted(lists)])
    return Tuning(chosen, section.metric, section.samples, section.seed, inputs, sampler, tuple(rounds))


def judge_round(
    metric: str, scores: dict[Angles, Estimate], tried: Sequence[Angles], now: Angles | None
) -> Round:
    """Return the outcome of one round; ties go to ``now``, then to the first in ``scores``."""
    sign = -metric_of(metric).sign

    def cost(angles: Angles) -> float:
        return sign * scores[angles]["value"]

    winner = min(tried, key=cost)
    advised = now if now and cost(now) <= cost(winner) else winner
    best = scores[advised]
    near = tuple(a for a in scores if a != advised and best["low"] <= scores[a]["value"] <= best["high"])
    return Round(len(winner), winner, now, advised, near, scores)


def _scores(whole: Job, lists: Sequence[Angles], scale: Scale, executor: Executor) -> dict[Angles, Estimate]:
    """Return the score of each list of times, in the order of ``lists``."""
    kind = whole.sampler.kind
    items = [
        (angles, replace(whole, steps=len(angles), sampler=Sampler(kind, (angles,))), scale)
        for angles in lists
    ]
    scores = dict(executor.map(score_job, items, "times", device=whole.device))
    return {angles: scores[angles] for angles in lists}
