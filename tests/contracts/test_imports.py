"""The core imports no orchestrator; commands import no more than they need."""

from __future__ import annotations

import os
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

COMMANDS = """
import contextlib, io, sys
from infra import cli
names = [info.name or info.callback.__name__.replace("_", "-") for info in cli.app.registered_commands]
for arguments in (["--help"], *([name, "--help"] for name in names)):
    sys.argv = ["rcm", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, arguments
    assert "Usage" in said.getvalue(), arguments
assert {"distill", "doctor", "sample"} <= {*names}
"""

STAGES = """
import sys
from infra import launch
for stage in launch.available("stages"):
    try:
        launch.main([stage, "--params", sys.argv[1]])
    except SystemExit as end:
        assert end.code == 2, stage
    else:
        raise AssertionError(stage)
"""

HEAVY = (
    "diffusers", "transformers", "torch._dynamo", "torch._inductor", "torch.distributed.fsdp",
    "torch.distributed.tensor", "torch.distributed.checkpoint", "sympy", "triton", "matplotlib", "pandas", "sklearn",
    "scipy", "ray", "prefect", "dvc", "s3fs", "botocore",
)  # fmt: skip
"""Modules that take 0.1 to 2 seconds to import each; torch takes one."""


def brought(code: str, folder: Path, *names: str) -> set[str]:
    """Return those of ``names`` that a process has imported after it ran ``code`` in ``folder``."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    env = os.environ | {"PYTHONPATH": path, "RCM_HOME": str(folder), "RCM_EXECUTOR": "local"}
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(*sys.modules)", str(ROOT / "params.yaml")],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stderr
    return {*names} & {*ended.stdout.split()}


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


def test_help_of_every_command_brings_nothing_heavy(tmp_path: Path) -> None:
    assert brought(COMMANDS, tmp_path, "torch", *HEAVY) == set()


def test_the_interfaces_bring_torch_alone(tmp_path: Path) -> None:
    assert brought("import sys, rcm_core.protocols", tmp_path, *HEAVY) == set()


def test_a_stage_that_lacks_its_inputs_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    assert brought(STAGES, tmp_path, *HEAVY) == set()
