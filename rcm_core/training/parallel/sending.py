"""Weights from the first rank, tensor by tensor, into a network that lies over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rcm_core.networks.weights import Target, loading
from rcm_core.protocols import Family


@torch.no_grad()
def fill_from_first_rank(
    network: nn.Module,
    folder: Path,
    family: Family,
    device: torch.device,
    weights: Mapping[str, Tensor] | None,
) -> None:
    """Fill ``network``, sharded or not, from the pipeline in ``folder``, or with ``weights``; a collective.

    The first rank alone reads them. Beside its own part a rank holds one tensor at a time; the first rank also has at
    most ``weights.CHUNK`` of one file mapped. ValueError if names differ from the network's own.
    """
    own = dict(network.state_dict())

    def place(name: str, value: Tensor) -> None:
        if name not in own:
            raise ValueError(f"the network has no weights {name}; export it again")
        _copy(value, own.pop(name))

    if dist.get_rank():
        while (told := _tell(None)) is not None:
            name, shape, dtype = told
            value = torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(value, 0)
            place(name, value)
    else:

        def send(name: str, value: Tensor) -> None:
            _tell((name, value.shape, value.dtype))
            value = value.to(device).contiguous()
            dist.broadcast(value, 0)
            place(name, value)

        if weights is None:
            with loading(Target(send=send)):
                loaded = family.load_network(folder)
            # those of a family that loads in its own way
            weights = {n: v for n, v in loaded.state_dict().items() if n in own and not v.is_meta}
        for name in weights:
            send(name, weights[name])
        _tell(None)
    if own:
        raise ValueError(f"no weights came for {sorted(own)[:3]}; export the network again")


def _tell(said: tuple[str, torch.Size, torch.dtype] | None) -> tuple[str, torch.Size, torch.dtype] | None:
    """What the first rank says, on every rank."""
    words = [said]
    dist.broadcast_object_list(words, 0)
    return words[0]


def _copy(whole: Tensor, part: Tensor) -> None:
    """``part``, or this rank's shard of it, becomes ``whole``."""
    if isinstance(part, DTensor):
        sharded = distribute_tensor(whole, part.device_mesh, part.placements, src_data_rank=None)
        part.to_local().copy_(sharded.to_local())
    else:
        part.copy_(whole)
