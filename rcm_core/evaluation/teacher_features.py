"""Judge features of the teacher's training samples: the reference of ``frechet_teacher``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcm_core.data.trajectory_store import MANIFEST, Store
from rcm_core.device import resolve_device
from rcm_core.evaluation.judges.base import Judge
from rcm_core.execution import Executor
from rcm_core.samplers.jobs import Teacher, codec_of
from rcm_core.storage.files import sha256
from rcm_core.storage.run_folder import RunFolder

IMPORTED = "the imported samples"
"""Name of the reference if ``trajectories.source`` names imported samples."""
BATCH = 128
"""Batch size for decoding small samples."""


class Part(NamedTuple):
    """A job for the judge: some of the teacher's samples in the trajectories."""

    workspace: Path
    cache: Path
    """Cache folder for shards from S3."""
    first: int
    last: int
    batch: int
    judge: Judge
    device: str


def teacher_features(
    workspace: Path, judge: Judge, executor: Executor, batch: int | None, device: str
) -> np.ndarray:
    """Return features [K, D] of the teacher's samples in the trajectories, independent of all scored samples.

    ``batch``: number of samples to decode at a time.
    """
    cache = executor.state_root / "cache"
    count = len(Store(RunFolder.of(workspace).trajectories, cache))
    parts = [
        Part(workspace, cache, first, min(first + BATCH, count), batch or BATCH, judge, device)
        for first in range(0, count, BATCH)
    ]
    features = dict(executor.map(_look, parts, "teacher's samples", device=device))
    return judge.features(torch.cat([features[part.first] for part in parts]))


@lru_cache(maxsize=1)
def _store(folder: Path, cache: Path, digest: str) -> Store:  # noqa: ARG001 - other contents, another store
    return Store(folder, cache)


def _look(part: Part) -> tuple[int, Tensor]:
    torch.set_num_threads(1)
    folder, teacher = RunFolder.of(part.workspace).trajectories, Teacher.read(part.workspace)
    store = _store(folder, part.cache, sha256(folder / MANIFEST))
    codec = codec_of(teacher.folder, teacher.family, resolve_device(part.device).type)
    looked = []
    for first in range(part.first, part.last, part.batch):
        rows = range(first, min(first + part.batch, part.last))
        latents = torch.stack([store.sample(i, ["x0"])["x0"] for i in rows])
        looked.append(part.judge.look(codec.decode(latents)))
    return part.first, torch.cat(looked)
