"""What generators are held against besides real images: the teacher's own samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rcm_core.evaluation.judge import Judge
from rcm_core.sampling import Teacher, codec_of
from rcm_core.trajectory_store import Store


def teacher_features(workspace: Path, cache: Path, judge: Judge) -> np.ndarray:
    """Features [K, D] of the teacher's samples in the trajectories: drawn apart from everything that is scored.

    ``cache`` is where shards from S3 are kept.
    """
    store = Store(workspace / "runs/trajectories", cache)
    teacher = Teacher.read(workspace)
    latents = torch.stack([store.sample(i)["x0"] for i in range(len(store))])
    return judge.features(codec_of(teacher.folder, teacher.family).decode(latents))
