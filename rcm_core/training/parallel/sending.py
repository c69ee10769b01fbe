"""Broadcast of weights from the first rank, tensor by tensor, into a network that is sharded over all ranks."""

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

    Only the first rank reads the weights. In addition to its own shard a rank holds one tensor at a time; the first
    rank also maps at most ``weights.CHUNK`` of one file. ValueError if names differ from the network's own.
    """
    own = dict(network.state_dict())

    def place(name: str, value: Tensor) -> None:
        if name not in own:
            raise ValueError(f"{folder} has weights {name}, which the network lacks; export it again")
        _copy(value, own.pop(name))

    if dist.get_rank():
        while (header := _tell(None)) is not None:
            name, shape, dtype = header
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
            # weights that the family loaded without Target
            weights = {n: v for n, v in loaded.state_dict().items() if n in own and not v.is_meta}
        for name in weights:
            send(name, weights[name])
        _tell(None)
    if own:
        raise ValueError(f"{folder} has no weights for {sorted(own)[:3]}; export the network again")


def _tell(header: tuple[str, torch.Size, torch.dtype] | None) -> tuple[str, torch.Size, torch.dtype] | None:
    """Broadcast the first rank's ``header`` (name, shape, dtype) to every rank; None ends the transfer."""
    headers = [header]
    dist.broadcast_object_list(headers, 0)
    return headers[0]


def _copy(whole: Tensor, part: Tensor) -> None:
    """Copy ``whole`` into ``part``, or into this rank's shard of it."""
    if isinstance(part, DTensor):
        sharded = distribute_tensor(whole, part.device_mesh, part.placements, src_data_rank=None)
        part.to_local().copy_(sharded.to_local())
    else:
        part.copy_(whole)
