"""Full-state checkpoints by torch DCP."""

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
"""What DCP raises for files that are missing, cut off or overwritten."""


def gather(
    modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer], ema: PowerEMA
) -> dict[str, Any]:
    """The tensors of the whole training state; under FSDP every rank holds its shards.

    An optimiser that has made no step has no state yet; asking torch for it would make one and count a step.
    """
    stepped = {role: optimiser for role, optimiser in optimisers.items() if optimiser.state}
    return {
        "modules": {role: get_model_state_dict(net) for role, net in modules.items()},
        "optimisers": {role: get_optimizer_state_dict(modules[role], o) for role, o in stepped.items()},
        "ema": ema.state_dict(),
    }


@contextmanager
def alone_if_one() -> Iterator[None]:
    """Lets DCP save and load without collectives, as one rank alone does.

    Gloo's threads would open OpenMP teams of their own for them; with more threads than cores GNU OpenMP stops to
    spin at its barriers, and every later step of a small network takes half as long again.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # it is meant so
        yield


def save(
    folder: Path,
    state: dict[str, Any],
    progress: dict[str, Any],
    rank: int,
    group: dist.ProcessGroup | None,
) -> None:
    """Writes this rank's part of ``state`` into ``folder``, and on rank 0 ``progress`` (plain JSON values).

    The ranks agree in ``group``; None: there is one. Within ``alone_if_one``.
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
    """Restores everything from ``folder``, resharding if the number of ranks changed; returns the saved progress.

    Loading is total: DCP raises on a key that is missing.
    """
    place, remedy = folder / "progress.json", f"remove {folder} to go on from an earlier checkpoint"
    progress: dict[str, Any] = fit(Progress, read_text(place, remedy), str(place), remedy)
    try:
        FileSystemReader(folder).read_metadata()  # here: DCP would log what it raises, and go on
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
        cause = next((failure for failure, _ in failures.values()), error)  # of the first rank that has one
        reason = named_line(cause, 200)
        raise InputError(f"checkpoint {folder} cannot be read ({reason}); {remedy}") from error
    for role, net in modules.items():
        set_model_state_dict(net, state["modules"][role])
    for role, saved in state["optimisers"].items():
        set_optimizer_state_dict(modules[role], optimisers[role], saved)
    ema.load_state_dict(state["ema"])
    return progress


def full_tensors(tensors: Mapping[str, Tensor], wanted: bool = True) -> dict[str, Tensor]:
    """Unsharded contiguous CPU copies, none on a rank where they are not ``wanted``; a collective under FSDP, so every
    rank calls it.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if wanted:
            found[name] = whole.detach().cpu().contiguous().clone()
    return found
