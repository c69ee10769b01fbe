"""Candidate networks in diffusers layout, ``<root>/step_000300-ema_0.05/transformer``: one per EMA length."""

from __future__ import annotations

import shutil
from pathlib import Path

from rcm_core.denoiser import Denoiser
from rcm_core.storage import atomic_folder
from rcm_core.training import checkpoint
from rcm_core.training.ema import PowerEMA
from rcm_core.training.lora import Adapted


def write_candidates(
    root: Path, step: int, student: Denoiser, ema: PowerEMA, rank: int, guidance: float | None = None
) -> None:
    """The student of ``step``, once for each EMA length; a collective."""
    for length in ema.exponents:
        weights = checkpoint.full_tensors({**student.state_dict(), **ema.weights(length)}, wanted=rank == 0)
        if rank == 0:
            folder = root / f"step_{step:06d}-ema_{length:g}" / "transformer"
            if isinstance(student, Adapted):
                merged = student.merged(weights)
                with atomic_folder(folder) as whole:
                    checkpoint.write_network(whole, merged, merged.state_dict())
                    student.write(whole, weights)
            else:
                checkpoint.write_network(folder, student.network, student.plain(weights, guidance))


def drop_candidates(root: Path, since: int) -> None:
    """Removes the candidates of step ``since`` and later."""
    for folder in root.glob("step_*-ema_*"):
        if int(folder.name.split("-")[0].removeprefix("step_")) >= since:
            shutil.rmtree(folder)
