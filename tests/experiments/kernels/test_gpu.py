"""Without a GPU the benchmark runs completely on tiny shapes, and refuses to measure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from workspaces import PATIENCE

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_every_part_runs_on_tiny_shapes() -> None:
    before = sorted((ROOT / "experiments/kernels").rglob("*.json"))
    done = run("-m", "experiments.kernels.gpu", "--smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    for part in ("matrix product", "of the ceiling", "modulated norm", "sCM step with the joint pass"):
        assert part in done.stdout
    assert sorted((ROOT / "experiments/kernels").rglob("*.json")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["gpu", "tune"])
def test_without_a_gpu_there_are_no_figures(script: str) -> None:
    done = run("-m", f"experiments.kernels.{script}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no CUDA device here")
    assert len(done.stderr.splitlines()) == 1
    assert "TFLOP" not in done.stdout
