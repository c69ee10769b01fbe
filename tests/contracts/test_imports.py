"""The core has heard of no orchestrator, and is there at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from workspaces import PATIENCE

ROOT = Path(__file__).parents[2]
STRANGERS = ("ray", "prefect", "dvc")

ALONE = """
import time
started = time.perf_counter()
import rcm_core
print(time.perf_counter() - started)
import sys
print(*(m for m in ("ray", "prefect", "dvc", "torch", "diffusers") if m in sys.modules))
"""

EVERYTHING = """
import importlib, pkgutil, sys
import rcm_core, rcm_kernels
count = 0
for package in (rcm_core, rcm_kernels):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        count += 1
print(count)
print(*(m for m in ("ray", "prefect", "dvc") if m in sys.modules))
"""


def output(code: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return ended.stdout.split("\n")


def test_the_core_is_imported_within_three_seconds_and_brings_nothing_heavy() -> None:
    seconds, heavy, _ = output(ALONE)
    assert float(seconds) <= 3
    assert heavy == ""


def test_no_module_of_the_core_or_the_kernels_brings_an_orchestrator() -> None:
    count, strangers, _ = output(EVERYTHING)
    files = [p for name in ("rcm_core", "kernels/rcm_kernels") for p in (ROOT / name).rglob("*.py")]
    packages = {p.parent for p in files if p.name == "__init__.py"}
    assert int(count) == len([p for p in files if p.name != "__init__.py"]) + len(packages) - 2
    assert strangers == ""
