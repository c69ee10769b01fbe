"""Accuracy of the memory that ``rcm plan`` predicts, compared with real trainings.

``python -m experiments.engine.plan_accuracy`` writes docs/results/plan.json.

Each case runs in its own process: the trainer's train step with the networks of ``training.distill`` from a folder of
random weights. Each kind of iteration is measured after a first round of all kinds, so that AdamW's moments exist.

The decisive measure is the peak of live tensor bytes. On a CPU it is the memory between steps, counted by storages,
plus the memory that a step adds, from the allocation events of PyTorch's allocator; repeatable to the byte. On a GPU it
is ``torch.cuda.max_memory_allocated``. ``resident`` is the process's memory, including fragmentation and the libraries'
buffers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import yaml
from rcm_kernels.plain import fastest_attention

from experiments.comparison.measurements import machine, peak_resident, reset_peak, resident
from experiments.comparison.studies.memory import most_alive
from experiments.comparison.workspaces import ROOT
from experiments.engine.assembled import Assembled, assemble, write_random
from infra.executors.local import _process_group
from rcm_core.config.base import check
from rcm_core.config.sections import Params
from rcm_core.device import resolve_device
from rcm_core.preflight.estimate import estimate
from rcm_core.preflight.network_calls import kinds
from rcm_core.preflight.teacher_spec import model_of
from rcm_core.storage.files import write_json
from rcm_core.training.distill import build_method
from rcm_core.units import MIB
from tests.support.presets import preset

ALLOWED = 0.15
"""Promised maximum error as a share of the measured peak."""


class Case(NamedTuple):
    """A training: sizes of ``mini``, and params that differ from the project's."""

    method: str
    checkpointing: str
    precision: str = "float32"
    mini: Mapping[str, int] = {}
    shape: tuple[int, ...] = (1, 1, 8, 8)
    batch: int = 32
    accumulate: int = 1
    lora: int | None = None
    """Rank of LoRA; None: full training."""


TINY: Mapping[str, int] = {"layers": 2, "heads": 2, "head_dim": 16, "ffn_dim": 64, "text_dim": 32}
DEEP: Mapping[str, int] = {"layers": 12, "heads": 4, "head_dim": 64, "ffn_dim": 1024, "text_dim": 64}
WIDE: Mapping[str, int] = {"layers": 12, "heads": 12, "head_dim": 128, "ffn_dim": 8960, "text_dim": 4096}
CASES = {
    "tiny scm": Case("scm", "none", mini=TINY, batch=8),
    "mini rcm": Case("rcm", "none"),
    "mini rcm, matmuls": Case("rcm", "matmuls"),
    "mini rcm, blocks": Case("rcm", "blocks"),
    "mini rcm, bfloat16, blocks": Case("rcm", "blocks", "bfloat16"),
    "mini dmd2": Case("dmd2", "none"),
    "mini dmd2, blocks": Case("dmd2", "blocks"),
    "mini dmd2-gan": Case("dmd2-gan", "none"),
    "mini tbcm": Case("tbcm", "none", batch=4),
    "mini cdm, accumulated": Case("cdm", "none", accumulate=4),
    "mini rcm, LoRA, blocks": Case("rcm", "blocks", lora=8),
    "12 blocks, rcm": Case("rcm", "none", mini=DEEP, batch=8),
    "12 blocks, rcm, blocks": Case("rcm", "blocks", mini=DEEP, batch=8),
}
ON_GPU = {
    "12 blocks of Wan 1.3B, scm, blocks": Case("scm", "blocks", "bfloat16", WIDE, (16, 5, 60, 104), 1),
    "12 blocks of Wan 1.3B, rcm, matmuls": Case("rcm", "matmuls", "bfloat16", WIDE, (16, 5, 60, 104), 1),
    "12 blocks of Wan 1.3B, dmd2": Case("dmd2", "none", "bfloat16", WIDE, (16, 5, 60, 104), 1),
}
"""Additional cases on a machine with a GPU."""


def params_of(case: Case) -> Params:
    """Return the project's params with the case's method and sizes."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe = preset(case.method)
    values["method"], train = recipe["method"], values["train"]
    values["teacher"] = yaml.safe_load((ROOT / "conf/teacher/mini-train.yaml").read_text())["teacher"]
    values["teacher"]["mini"] |= case.mini
    values["teacher"] |= {"shape": list(case.shape)}
    train |= recipe["train"] | {"batch": case.batch, "accumulate": case.accumulate}
    train["parallel"] |= {"precision": case.precision, "checkpointing": case.checkpointing}
    if case.lora is not None:
        train["lora"] = {"rank": case.lora, "alpha": case.lora, "targets": None}
    return check(Params, values, "params.yaml")


def measure(name: str) -> dict[str, float]:
    """Measure one case in this process, on one thread."""
    torch.set_num_threads(1)
    params, device = params_of((CASES | ON_GPU)[name]), resolve_device("auto")
    model = model_of(params.teacher, ROOT)
    batch = params.train.batch // params.train.accumulate
    method = build_method(params.method, params.train.tangent)
    steps = [kind.step for kind in kinds(method, params.train.iterations, batch, params.teacher.guidance, 50)]
    with TemporaryDirectory() as place, _process_group(), fastest_attention():
        write_random(Path(place), model, device)
        before = resident()
        reset_peak()
        made = assemble(params, model, Path(place), device)
        for step in steps:
            made.stepper.train_step(step)
        above = peak_resident() - before
        found = peak(made, steps, device)
    return {"tensors": found, "resident": above}


def peak(made: Assembled, steps: list[int], device: torch.device) -> int:
    """Return the peak bytes of live tensors during ``steps``."""

    def again() -> None:
        for step in steps:
            made.stepper.train_step(step)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        again()
        return torch.cuda.max_memory_allocated()
    return made.count_bytes() + most_alive(again)


def in_fresh_process(name: str) -> dict[str, float]:
    """Return the result of ``measure`` for case ``name`` in a fresh process."""
    command = [sys.executable, "-m", "experiments.engine.plan_accuracy", name]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{name}: {answer.stderr[-2000:]}")
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def predict(name: str) -> dict[str, float]:
    """Return the plan's prediction for the case; on a GPU with the GPU's attention."""
    params = params_of((CASES | ON_GPU)[name])
    found = estimate(model_of(params.teacher, ROOT), params, fused=torch.cuda.is_available())
    return {"tensors": found.peak, "blocks_rehearsed": found.rehearsed[-1]}


def compare_with_measured(name: str) -> dict[str, Any]:
    """Return the prediction, the measurement and their ratio."""
    predicted, measured = predict(name), in_fresh_process(name)
    ratio = predicted["tensors"] / measured["tensors"]
    print(
        f"{name}: predicted {predicted['tensors'] / MIB:.1f} MiB, {ratio:.3f} of the measured peak",
        flush=True,
    )
    return {"predicted": predicted, "measured": measured, "ratio": ratio}


def main() -> int:
    """Without arguments, write all cases to docs/results/plan.json; 1 if an error exceeds the promise."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return 0
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cases = {name: compare_with_measured(name) for name in (CASES | ON_GPU if gpu else CASES)}
    worst = max(abs(found["ratio"] - 1) for found in cases.values())
    facts = {**machine(), "gpu": gpu or "no GPU"}
    write_json(
        ROOT / "docs/results/plan.json",
        {"allowed": ALLOWED, "worst": worst, "cases": cases, "machine": facts},
    )
    print(f"at most {worst:.1%} off, promised: {ALLOWED:.0%}")
    return 0 if worst <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
