"""Checkpoints of an interrupted training that were damaged before it resumes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infra.state import state_root
from scripts.bad_inputs.damage import Damage
from scripts.bad_inputs.project import Case

PARAMS = "given/long.yaml"
COMMAND = ("run", "train", "--params", PARAMS)
DAMAGES: dict[str, Damage | None] = {
    "missing": None,
    "empty": lambda _: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "a text": lambda _: b"not a checkpoint",
}


def checkpoints(root: Path) -> Iterator[Case]:
    """Return an input for each file of the newest checkpoint and each damage."""
    newest = interrupt(root)
    for path in sorted(newest.iterdir()):
        for what, damage in DAMAGES.items():
            yield Case("checkpoint", f"{path.name}: {what}", COMMAND, str(path), damage)


def interrupt(root: Path) -> Path:
    """Start a training that takes long, end it once it has checkpoints, and return the newest."""
    values: dict[str, Any] = yaml.safe_load((root / "params.yaml").read_text())
    values["train"] |= {"iterations": 20_000, "candidate_every": 20_000}
    (root / PARAMS).write_text(yaml.safe_dump(values))
    environment = os.environ | {"RCM_EXECUTOR": "local"}
    command = [sys.executable, "-m", "infra.cli", *COMMAND]
    before = _list_saved(root)
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL) as training:
        while training.poll() is None and len(_list_saved(root) - before) < 2:
            time.sleep(0.05)
        training.terminate()
    return max(_list_saved(root) - before)


def _list_saved(root: Path) -> set[Path]:
    return set(state_root(root).glob("train-*/local/step_*"))
