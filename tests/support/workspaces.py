"""Workspaces as users have them: changed parameters, and stages run by the command of dvc.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rcm_core.config.load import load_params
from rcm_core.config.sections import Params
from rcm_core.pipelines.teacher_folder import pipeline_of
from rcm_core.storage.files import sha256_folder

PATIENCE = 900
"""Timeout in seconds of any wait on a busy machine; a hanging test ends after twice that."""


def change(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Set settings such as ``{"train.batch": 4}`` in ``values``, in place; return ``values``."""
    for path, value in settings.items():
        *sections, key = path.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[key] = value
    return values


def configure(workspace: Path, settings: Mapping[str, Any]) -> Params:
    """Change params.yaml of ``workspace`` and read it as a stage does."""
    path = workspace / "params.yaml"
    path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()), settings)))
    return load_params(path)


def environment(workspace: Path, executor: str = "ray") -> dict[str, str]:
    """Return the environment of a stage's process: live state in the workspace, no GPU, no external Ray."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RCM_"))}
    return env | {"RCM_HOME": str(workspace / ".rcm"), "RCM_EXECUTOR": executor, "CUDA_VISIBLE_DEVICES": ""}


def command(stage: str) -> list[str]:
    """Return the command of ``stage`` in dvc.yaml."""
    return [sys.executable, "-m", "infra.launch", stage]


def launch(workspace: Path, stage: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``stage`` until it ends."""
    return subprocess.run(
        command(stage),
        cwd=workspace,
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def wait_for(
    what: str,
    condition: Callable[[], Any],
    log: Path | None = None,
    process: subprocess.Popen[Any] | None = None,
    every: float = 0.02,
) -> Any:
    """Return the first true value of ``condition``, tried every ``every`` seconds.

    AssertionError, with the end of ``log``, if ``process`` ends before it is true, or after ``PATIENCE``.
    """
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        said = f": {log.read_text()[-3000:]}" if log and log.is_file() else ""
        assert process is None or process.poll() is None, f"the process ended before {what}{said}"
        assert time.monotonic() < deadline, f"no {what} after {PATIENCE} s{said}"
        time.sleep(every)
    return found


def accept_teacher(workspace: Path) -> None:
    """Record the teacher that a test has changed as the output of the teacher stage."""
    place = workspace / "runs/teacher/teacher.json"
    facts = json.loads(place.read_text())
    facts["hash"] = sha256_folder(pipeline_of(workspace))
    place.write_text(json.dumps(facts))
