"""Times for the student's sampler, one after the other: the first alone, then frozen, then the next.

SANA-Sprint (arXiv 2503.09641) finds its few-step times in this order. All candidates are scored on the validation
split with the same prompts, ids and seed, so that they differ by their times alone.
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
"""tan t, the noise level of EDM, down to 6: t = 1.4."""
LATER = 15
"""Every later time is n fifteenths of the one before it."""
INPUTS = [RELATIVE.teacher_file, RELATIVE.prompts_file, RELATIVE.student]


@dataclass(frozen=True)
class Round:
    """One number of steps: what was tried, and what came out."""

    steps: int
    found: Angles
    """The best candidate; the next round keeps it and adds a time."""
    now: Angles | None
    """What the parameters have for this number of steps."""
    advised: Angles
    """The better of the two."""
    near: tuple[Angles, ...]
    """The others whose score is within the advised one's interval: as good, as far as can be seen."""
    scores: dict[Angles, Estimate]


@dataclass(frozen=True)
class Tuning:
    """What was found for which student, by what measure."""

    student: str
    metric: str
    samples: int
    seed: int
    inputs: dict[str, str]
    sampler: Sampler
    """The advised one: lists of numbers of steps that were not searched are as they were."""
    rounds: tuple[Round, ...]

    def record(self) -> dict[str, Any]:
        """For JSON: lists in the place of keys that are lists."""
        rounds = [
            asdict(r) | {"scores": [{"angles": a, "score": s} for a, s in r.scores.items()]}
            for r in self.rounds
        ]
        return {**{k: getattr(self, k) for k in ("student", "metric", "samples", "seed", "inputs")},
                "sampler": asdict(self.sampler), "rounds": rounds}  # fmt: skip


def candidates(frozen: Angles) -> list[Angles]:
    """``frozen`` and one time more, descending, of four digits."""
    if not frozen:
        return [(angle,) for angle in FIRST]
    return [(*frozen, float(f"{frozen[-1] * n / LATER:.4g}")) for n in range(LATER - 1, 0, -1)]


def tune(params: Params, workspace: Path, executor: Executor, steps: int, samples: int | None) -> Tuning:
    """Times for 1 to ``steps`` steps of the chosen student, by ``select.metric``; ``samples`` None: select's.

    InputError if there is no chosen student.
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
        there = now.angles(count) if count in now.steps else None
        tried = candidates(frozen)
        both = list(dict.fromkeys([*tried, *([there] if there else [])]))
        scores = _scores(whole, both, scale, executor)
        rounds.append(judge_round(section.metric, scores, tried, there))
        frozen = rounds[-1].found
    lists = {len(angles): angles for angles in now.times} | {r.steps: r.advised for r in rounds}
    sampler = Sampler.of(now.kind, [lists[count] for count in sorted(lists)])
    return Tuning(chosen, section.metric, section.samples, section.seed, inputs, sampler, tuple(rounds))


def judge_round(
    metric: str, scores: dict[Angles, Estimate], tried: Sequence[Angles], now: Angles | None
) -> Round:
    """The outcome of one round; of equals the first in ``scores`` is taken, what is there ``now`` before it."""
    sign = -metric_of(metric).sign

    def cost(angles: Angles) -> float:
        return sign * scores[angles]["value"]

    found = min(tried, key=cost)
    advised = now if now and cost(now) <= cost(found) else found
    best = scores[advised]
    near = tuple(a for a in scores if a != advised and best["low"] <= scores[a]["value"] <= best["high"])
    return Round(len(found), found, now, advised, near, scores)


def _scores(whole: Job, lists: Sequence[Angles], scale: Scale, executor: Executor) -> dict[Angles, Estimate]:
    """The score of each list, in the order of ``lists``."""
    kind = whole.sampler.kind
    items = [
        (angles, replace(whole, steps=len(angles), sampler=Sampler(kind, (angles,))), scale)
        for angles in lists
    ]
    found = dict(executor.map(score_job, items, "times", device=whole.device))
    return {angles: found[angles] for angles in lists}
