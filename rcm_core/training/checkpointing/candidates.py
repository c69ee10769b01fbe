"""Candidate networks in diffusers layout, ``<root>/step_000300-ema_0.05/transformer``: one per EMA length."""

from __future__ import annotations

import shutil
from pathlib import Path

from rcm_core.networks.denoiser import Denoiser
from rcm_core.networks.weights import written_as
from rcm_core.storage.files import atomic_folder
from rcm_core.training.checkpointing import checkpoint
from rcm_core.training.ema import PowerEMA
from rcm_core.training.lora import Adapted


def write_candidates(
    root: Path,
    step: int,
    student: Denoiser,
    ema: PowerEMA,
    rank: int,
    guidance: float | None = None,
    precision: str = "float32",
) -> None:
    """Write the student of ``step`` for each EMA length in ``precision``, or its LoRA matrices; a collective."""
    for length in ema.exponents:
        weights = checkpoint.full_tensors({**student.state_dict(), **ema.weights(length)}, wanted=rank == 0)
        if rank == 0:
            folder = root / f"step_{step:06d}-ema_{length:g}" / "transformer"
            if isinstance(student, Adapted):
                with atomic_folder(folder) as whole:
                    student.write(whole, weights)
            else:
                whole_weights = student.plain(weights, guidance)
                parameters = dict(student.network.named_parameters())
                kept = written_as(whole_weights, parameters, precision, student.family.time_embedder)
                checkpoint.write_network(folder, student.network, kept)


def drop_candidates(root: Path, since: int) -> None:
    """Remove the candidates of step ``since`` and later."""
    for folder, step in _list_written(root).items():
        if step >= since:
            shutil.rmtree(folder)


def keep_newest(root: Path, count: int) -> None:
    """Remove all candidates except those of the newest ``count`` steps."""
    written = _list_written(root)
    kept = sorted(set(written.values()))[-count:]
    for folder, step in written.items():
        if step not in kept:
            shutil.rmtree(folder)


def earliest_step(every: int, step: int, keep: int | None) -> int:
    """Return the earliest step before ``step`` whose candidates are still on disk; ``step`` if none is."""
    before = list(range(every, step, every))
    return (before[-(keep or len(before)) :] or [step])[0]


def _list_written(root: Path) -> dict[Path, int]:
    return {f: int(f.name.split("-")[0].removeprefix("step_")) for f in root.glob("step_*-ema_*")}
