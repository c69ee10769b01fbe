"""Shared teachers, sizes and runs for the tests of imported samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.data.trajectory_store import Store
from rcm_core.stages import trajectories

SHAPES = {"sd3": (4, 1, 8, 6), "cosmos": (4, 2, 4, 6), "wan": (2, 3, 4, 6)}
PIXELS = {"sd3": (16, 12), "cosmos": (32, 48)}
TEXT = (6, 16)
"""Tokens and width of tiny Wan's embeddings."""


def copy_of(teacher: Path, folder: Path) -> Path:
    """Copy the workspace ``teacher`` to ``folder``, without live state."""
    shutil.copytree(teacher, folder, ignore=shutil.ignore_patterns(".rcm"))
    return folder


def configured(
    workspace: Path, folder: Path | str, settings: dict[str, Any] | None = None, **source: Any
) -> Any:
    given = {"trajectories.source": {"folder": str(folder), **source}} | (settings or {})
    return configure(workspace, given)


def run(workspace: Path, folder: Path | str, settings: dict[str, Any] | None = None, **source: Any) -> Store:
    params = configured(workspace, folder, settings, **source)
    trajectories.run(params, workspace, LocalExecutor(workspace))
    return Store(workspace / "runs/trajectories", workspace / "cache")


def by_file(store: Store) -> dict[str, dict[str, torch.Tensor]]:
    return {name: store.sample(i) for i, name in enumerate(store.frame["file"])}
