"""Peak memory of worker processes, for the stage's record."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from rcm_core.storage.checked_json import fit
from rcm_core.storage.files import write_json
from rcm_core.storage.formats import read_text
from rcm_core.storage.schemas import Usage


def write_usage(state: Path, rank: int, device: torch.device) -> None:
    """Write this rank's peak memory (resident, or allocated on the GPU) into the live state."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    write_json(state / f"usage-{rank}.json", {"peak_memory_bytes": peak})


def peak_memory(state: Path) -> int:
    """Return the largest peak of all ranks, 0 if none was written."""
    remedy = f"remove {state}"
    usages = [fit(Usage, read_text(p, remedy), str(p), remedy) for p in state.glob("usage-*.json")]
    return max((facts["peak_memory_bytes"] for facts in usages), default=0)
