"""Full-state checkpoints by torch DCP: trained and target networks, optimiser states, EMAs.

``progress.json`` beside the tensors has step, update counts, tangent, health and curves (``Trainer.save``). Random
numbers are addressed by step, so no generator state is saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from rcm_core.errors import InputError, named_line
from rcm_core.networks.weights import write_network as write_network
from rcm_core.storage.checked_json import fit
from rcm_core.storage.files import write_json
from rcm_core.storage.formats import UNPICKLING, read_text
from rcm_core.storage.schemas import Progress
from rcm_core.training.ema import PowerEMA

DAMAGED = (CheckpointException, UnpicklingError, EOFError, OSError)
"""Errors that DCP raises for files that are missing, truncated or overwritten."""


def gather(
    modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer], ema: PowerEMA
) -> dict[str, Any]:
    """Return the tensors of the whole training state; under FSDP every rank has its shards.

    An optimiser without a step has no state yet; asking torch for it would create one and count a step.
    """
    stepped = {role: optimiser for role, optimiser in optimisers.items() if optimiser.state}
    return {
        "modules": {role: get_model_state_dict(net) for role, net in modules.items()},
        "optimisers": {role: get_optimizer_state_dict(modules[role], o) for role, o in stepped.items()},
        "ema": ema.state_dict(),
    }


@contextmanager
def alone_if_one() -> Iterator[None]:
    """Allow DCP to save and load without collectives if there is only one rank.

    Collectives would make Gloo's threads open their own OpenMP teams. With more threads than cores GNU OpenMP stops
    spinning at its barriers, and every later step of a small network takes 50 % longer.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # this is intended
        yield


def save(
    folder: Path,
    state: dict[str, Any],
    progress: dict[str, Any],
    rank: int,
    group: dist.ProcessGroup | None,
) -> None:
    """Write this rank's part of ``state`` into ``folder``, and on rank 0 ``progress`` (plain JSON values).

    ``group``: the process group of the ranks; None: one rank alone. Call this within ``alone_if_one``.
    """
    state_dict_saver.save(state, checkpoint_id=folder, process_group=group, no_dist=group is None)
    if rank == 0:
        write_json(folder / "progress.json", {**progress, "optimisers": sorted(state["optimisers"])})


def load(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    ema: PowerEMA,
) -> dict[str, Any]:
    """Restore everything from ``folder``, resharding if the number of ranks changed; return the saved progress.

    DCP raises if a key is missing.
    """
    place, remedy = folder / "progress.json", f"remove {folder} to resume from an earlier checkpoint"
    progress: dict[str, Any] = fit(Progress, read_text(place, remedy), str(place), remedy)
    try:
        FileSystemReader(
            folder
        ).read_metadata()  # checked here because DCP only logs this error and continues
    except (OSError, *UNPICKLING) as error:
        raise InputError(
            f"checkpoint {folder} cannot be read ({named_line(error, 200)}); {remedy}"
        ) from error
    state = gather(modules, {}, ema)
    state["optimisers"] = {
        role: get_optimizer_state_dict(modules[role], optimisers[role]) for role in progress["optimisers"]
    }
    try:
        with alone_if_one():
            state_dict_loader.load(state, checkpoint_id=folder, no_dist=dist.get_world_size() == 1)
    except DAMAGED as error:
        failures = error.failures if isinstance(error, CheckpointException) else {}
        cause = next((failure for failure, _ in failures.values()), error)  # the first failed rank's
        reason = named_line(cause, 200)
        raise InputError(f"checkpoint {folder} cannot be read ({reason}); {remedy}") from error
    for role, net in modules.items():
        set_model_state_dict(net, state["modules"][role])
    for role, saved in state["optimisers"].items():
        set_optimizer_state_dict(modules[role], optimisers[role], saved)
    ema.load_state_dict(state["ema"])
    return progress


def full_tensors(tensors: Mapping[str, Tensor], wanted: bool = True) -> dict[str, Tensor]:
    """Return unsharded contiguous CPU copies, or nothing on ranks with ``wanted`` False.

    A collective under FSDP, so every rank must call it.
    """
    copies = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if wanted:
            copies[name] = whole.detach().cpu().contiguous().clone()
    return copies
