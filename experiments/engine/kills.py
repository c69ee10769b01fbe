"""Ten trainings with one killed worker each: ``python -m experiments.engine.kills``.

Every run has two workers of Ray Train. One of them gets SIGKILL at a step drawn from the seed, and Ray resumes from
the newest checkpoint. ``docs/results/kills.json`` has these steps, and whether candidates and curves are bitwise equal
to those of an uninterrupted run. Exit status 1 if any run differs.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
from pathlib import Path
from typing import Any

from experiments.engine.small import ROOT, WORKERS, spec_of, workspace, write_result
from infra.ray.executor import RayExecutor
from rcm_core.execution import TrainContext, TrainJob
from rcm_core.storage.files import sha256, sha256_folder
from rcm_core.training import distill

ITERATIONS, CHECKPOINT = 16, 4
OVERRIDES = (
    f"train.iterations={ITERATIONS}", f"train.checkpoint_every={CHECKPOINT}", "train.candidate_every=8",
    "train.batch=8", "teacher.mini.layers=2", "teacher.mini.heads=2", "teacher.mini.head_dim=16",
    "teacher.mini.ffn_dim=64", "teacher.mini.text_dim=32",
)  # fmt: skip


def loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """Run ``distill.loop``; with ``spec["kill"]`` = [rank, step], that rank is killed once before that step."""
    trainer = distill.assemble(context, spec)
    step, marker = trainer.train_step, Path(spec["state"]) / "killed"

    def watch_step(number: int) -> dict[str, float]:
        if [context.rank, number] == spec["kill"] and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(number)

    trainer.train_step = watch_step  # type: ignore[method-assign]
    trainer.run()
    distill.finish(trainer, spec)


def train(executor: RayExecutor, spec: dict[str, Any]) -> tuple[str, str]:
    """Train, and return the digests of candidates and curves."""
    state = Path(spec["state"])
    executor.train(
        TrainJob(loop, spec, state=state, workers=WORKERS, threads=1, device="cpu", max_failures=1)
    )
    return sha256_folder(state / "candidates"), sha256(state / "curves.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    made = workspace("kills", *OVERRIDES)
    executor = RayExecutor(ROOT, None)
    uninterrupted = train(executor, spec_of(made, "whole", kill=None))
    kills: list[dict[str, Any]] = []
    for number in range(options.kills):
        place = [draw.randrange(WORKERS), draw.randrange(1, ITERATIONS)]
        spec = spec_of(made, f"killed-{number}", kill=place)
        equal = train(executor, spec) == uninterrupted
        resumed = re.findall(r"resumed at step (\d+)", (Path(spec["state"]) / "log.txt").read_text())
        assert (Path(spec["state"]) / "killed").exists()
        kills.append(
            {"rank": place[0], "step": place[1], "resumed": [int(n) for n in resumed], "equal": equal}
        )
        print(kills[-1], flush=True)
    executor.close()
    facts = {
        "workers": WORKERS,
        "iterations": ITERATIONS,
        "checkpoint_every": CHECKPOINT,
        "seed": options.seed,
    }
    write_result("kills", facts | {"kills": kills})
    return 0 if all(kill["equal"] for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
