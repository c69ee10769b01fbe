"""Bytes of tensors on one rank of a training, by purpose."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from rcm_core.training.train_step import Stepper


def held_by(stepper: Stepper, teacher: nn.Module, offload: Collection[str] = ()) -> dict[str, int]:
    """Bytes on this rank's device that stay from step to step, by what they are for; networks of the roles in
    ``offload`` lie elsewhere.
    """
    here = {role: o for role, o in stepper.optimisers.items() if role not in offload}
    own = {role: list(net.parameters()) for role, net in stepper.modules.items()}
    known = {p for parameters in own.values() for p in parameters}
    own["teacher"] = [p for p in teacher.parameters() if p not in known]
    return {
        **{f"weights: {role}": bytes_of(values) for role, values in own.items() if role not in offload},
        "optimiser": bytes_of(tree_leaves([state for o in here.values() for state in o.state.values()])),
        "averages": bytes_of(tree_leaves(stepper.ema.averages)),
    }


def bytes_of(tensors: Any) -> int:
    """Return the bytes of this rank's parts of all tensors among ``tensors``."""
    return sum(local_bytes(x) for x in tensors if isinstance(x, Tensor))


def local_bytes(x: Tensor) -> int:
    """Return the bytes of this rank's part."""
    own = x._local_tensor if isinstance(x, DTensor) else x
    if is_traceable_wrapper_subclass(own):  # quantised: codes and scales
        return sum(local_bytes(getattr(own, name)) for name in own.__tensor_flatten__()[0])
    return own.numel() * own.element_size()
