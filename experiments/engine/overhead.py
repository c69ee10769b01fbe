"""Overhead of Ray Train over plain torchrun for the same training steps: ``python -m experiments.engine.overhead``.

Both run ``loop`` on ``--workers`` ranks (default 2), alternately and in a changing order, so that other work on the
machine slows both. ``docs/results/ray-overhead-<ranks>.json`` has the median seconds of a step without the first
(warm-up) steps, in wall-clock time and in CPU time of rank 0's process. It has Ray's overhead as the median over the
rounds, because the two runs of a round are close in time, and separately the seconds until the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.engine.small import ROOT, WORKERS, spec_of, workspace, write_result
from infra.executors.torchrun import TorchrunExecutor, is_rank
from infra.ray.executor import RayExecutor
from rcm_core.execution import TrainContext, TrainJob
from rcm_core.storage.files import write_json
from rcm_core.training import distill

ITERATIONS, WARM, BATCH = 30, 6, 32
OVERRIDES = (
    f"train.iterations={ITERATIONS}", "train.checkpoint_every=15", f"train.candidate_every={ITERATIONS}",
    f"train.batch={BATCH}", "train.log_every=10",
)  # fmt: skip


def loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """Run ``distill.loop`` and record the seconds of every step and of everything before and after."""
    trainer = distill.assemble(context, spec)
    step, seconds, cpu = trainer.train_step, [], []

    def time_step(number: int) -> dict[str, float]:
        begin, used = time.perf_counter(), time.process_time()
        result = step(number)
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - used)
        return result

    trainer.train_step = time_step  # type: ignore[method-assign]
    first = time.time()
    trainer.run()
    facts = {"steps": seconds, "cpu": cpu, "start": first - spec["asked"], "run": time.time() - first}
    if context.rank == 0:
        write_json(Path(spec["state"]) / "seconds.json", facts)


def on_ray(executor: RayExecutor, spec: dict[str, Any], workers: int) -> dict[str, Any]:
    """Return the seconds of one training by Ray Train on a running cluster."""
    state = Path(spec["state"])
    executor.train(TrainJob(loop, spec, state=state, workers=workers, threads=1, device="cpu"))
    return json.loads((state / "seconds.json").read_text())


def on_torchrun(spec: dict[str, Any], workers: int) -> dict[str, Any]:
    """Return the seconds of one training by torchrun, which runs this file."""
    write_json(Path(spec["state"]) / "spec.json", spec)
    command = ["torch.distributed.run", f"--nproc-per-node={workers}", "-m", "experiments.engine.overhead"]
    subprocess.run([sys.executable, "-m", *command, spec["state"]], cwd=ROOT, check=True)
    return json.loads((Path(spec["state"]) / "seconds.json").read_text())


def as_rank(state: Path) -> None:
    """Run one rank; called in each process of torchrun."""
    with TorchrunExecutor(ROOT) as executor:
        if executor.rank:
            executor.follow()
            return
        spec, workers = json.loads((state / "spec.json").read_text()), int(os.environ["WORLD_SIZE"])
        executor.train(TrainJob(loop, spec, state=state, workers=workers, threads=1, device="cpu"))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise one engine's ``runs``: the median over the steps of each, and over the runs for the rest."""
    return {
        "step": [round(statistics.median(run["steps"][WARM:]), 4) for run in runs],
        "cpu": [round(statistics.median(run["cpu"][WARM:]), 4) for run in runs],
        "run": round(statistics.median(run["run"] for run in runs), 2),
        "start": round(statistics.median(run["start"] for run in runs), 1),
    }


def overhead(ray: list[float], torchrun: list[float]) -> float:
    """Return the median over the rounds of Ray's relative overhead."""
    return round(statistics.median(a / b - 1 for a, b in zip(ray, torchrun, strict=True)), 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path, nargs="?", help="set by torchrun's command only")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=WORKERS)
    options = parser.parse_args()
    if is_rank():
        as_rank(options.state)
        return 0
    workers = options.workers
    made = workspace("overhead", *OVERRIDES, f"train.workers={workers}")
    executor = RayExecutor(ROOT, None)
    runs: dict[str, list[dict[str, Any]]] = {"ray": [], "torchrun": []}
    for number in range(options.rounds):
        for name in sorted(runs, reverse=bool(number % 2)):
            spec = spec_of(made, f"{name}-{number}", asked=time.time())
            runs[name].append(
                on_ray(executor, spec, workers) if name == "ray" else on_torchrun(spec, workers)
            )
            print(name, summary(runs[name][-1:]), flush=True)
    executor.close()
    found = {name: summary(of) for name, of in runs.items()}
    more = {kind: overhead(found["ray"][kind], found["torchrun"][kind]) for kind in ("step", "cpu")}
    facts = {
        "workers": workers,
        "batch": BATCH,
        "iterations": ITERATIONS,
        "warm": WARM,
        "rounds": options.rounds,
    }
    load = [round(value, 1) for value in os.getloadavg()]
    write_result(f"ray-overhead-{workers}", facts | {"seconds": found, "overhead": more, "load": load})
    return 0


if __name__ == "__main__":
    sys.exit(main())
