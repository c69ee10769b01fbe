"""Ray Train against plain torchrun: the same steps of the same training, ``python -m scripts.engine.overhead``.

Both run ``loop`` on two ranks, in turns, and which of them is first changes from round to round: other work on the
machine slows both. ``docs/results/ray-overhead.json`` has the median seconds of a step in each run (the first steps,
which warm up, left out), the ratio of the medians over all steps, and apart from them the seconds until the first step.
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

from infra.ray.executor import RayExecutor
from infra.torchrun import TorchrunExecutor, started
from rcm_core.protocols import TrainContext
from rcm_core.storage import write_json
from rcm_core.training import distill
from scripts.engine.small import ROOT, WORKERS, spec_of, workspace, write_result

ITERATIONS, WARM, BATCH = 40, 10, 32
OVERRIDES = (
    f"train.iterations={ITERATIONS}", "train.checkpoint_every=20", f"train.candidate_every={ITERATIONS}",
    f"train.batch={BATCH}", "train.log_every=10",
)  # fmt: skip


def loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """``distill.loop`` with the seconds of every step, and of all that lies around them."""
    trainer = distill.assemble(context, spec)
    step, seconds = trainer.train_step, []

    def timed(number: int) -> dict[str, float]:
        begin = time.perf_counter()
        result = step(number)
        seconds.append(time.perf_counter() - begin)
        return result

    trainer.train_step = timed  # type: ignore[method-assign]
    first = time.time()
    trainer.run()
    facts = {"steps": seconds, "start": first - spec["asked"], "run": time.time() - first}
    if context.rank == 0:
        write_json(Path(spec["state"]) / "seconds.json", facts)


def on_ray(executor: RayExecutor, spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one training by Ray Train; its cluster runs already."""
    state = Path(spec["state"])
    executor.train(loop, spec, state=state, workers=WORKERS, threads=1, device="cpu")
    return json.loads((state / "seconds.json").read_text())


def on_torchrun(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one training by torchrun, which runs this file."""
    write_json(Path(spec["state"]) / "spec.json", spec)
    command = ["torch.distributed.run", f"--nproc-per-node={WORKERS}", "-m", "scripts.engine.overhead"]
    subprocess.run([sys.executable, "-m", *command, spec["state"]], cwd=ROOT, check=True)
    return json.loads((Path(spec["state"]) / "seconds.json").read_text())


def as_rank(state: Path) -> None:
    """What each process of torchrun does."""
    with TorchrunExecutor(ROOT) as executor:
        if executor.rank:
            executor.follow()
            return
        spec = json.loads((state / "spec.json").read_text())
        executor.train(loop, spec, state=state, workers=WORKERS, threads=1, device="cpu")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one engine's ``runs``: medians over the steps of each, over all, and of the rest."""
    warm = [run["steps"][WARM:] for run in runs]
    return {
        "step": round(statistics.median(s for steps in warm for s in steps), 4),
        "steps_of_rounds": [round(statistics.median(steps), 4) for steps in warm],
        "run": round(statistics.median(run["run"] for run in runs), 2),
        "start": round(statistics.median(run["start"] for run in runs), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path, nargs="?", help="given by torchrun's command alone")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if started():
        as_rank(options.state)
        return 0
    made = workspace("overhead", *OVERRIDES)
    executor = RayExecutor(ROOT, None)
    runs: dict[str, list[dict[str, Any]]] = {"ray": [], "torchrun": []}
    for number in range(options.rounds):
        for name in sorted(runs, reverse=bool(number % 2)):
            spec = spec_of(made, f"{name}-{number}", asked=time.time())
            runs[name].append(on_ray(executor, spec) if name == "ray" else on_torchrun(spec))
            print(name, summary(runs[name][-1:]), flush=True)
    executor.close()
    found = {name: summary(of) for name, of in runs.items()}
    ratios = [a / b for a, b in zip(*(found[name]["steps_of_rounds"] for name in ("ray", "torchrun")))]
    facts = {"workers": WORKERS, "batch": BATCH, "iterations": ITERATIONS, "warm": WARM, "seconds": found}
    overhead = {
        "all": found["ray"]["step"] / found["torchrun"]["step"] - 1,
        "rounds": statistics.median(ratios) - 1,
    }
    load = round(os.getloadavg()[2], 1)
    write_result(
        "ray-overhead", facts | {"overhead": {k: round(v, 4) for k, v in overhead.items()}, "load": load}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
