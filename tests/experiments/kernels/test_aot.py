"""Every shipped configuration compiles for sm_90 without a GPU, fits its shared memory and spills nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rcm_kernels.dispatch import triton_interprets

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(triton_interprets() is None, reason="Triton exists on Linux only")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shipped_configurations_fit_sm_90() -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "experiments.kernels.aot", "--arch", "90"]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()[1:]
    attention, pointwise = {"forward", "dq", "dk,"}, {"norm", "residual", "activation", "rotary"}
    assert {line.split()[1] for line in lines} == attention | pointwise
    # tensor cores do the products of half precision
    products = [int(line.split()[-1]) for line in lines if "bf16" in line and line.split()[1] in attention]
    assert all(n > 0 for n in products)
    assert any("tma" in line for line in lines)
