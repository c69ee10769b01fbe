"""Value and directional derivative of a function of tensors by forward-mode AD."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def jvp(
    fn: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Return ``fn(*primals)`` and its derivative along ``tangents``; a tangent of None is zero.

    It uses ``torch.autograd.forward_ad`` because ``torch.func.jvp`` needs a functional copy of a module; so the
    module's hooks and sharding wrappers run as in any forward pass.
    """
    with forward_ad.dual_level():
        inputs = [
            primal if tangent is None else forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
            for primal, tangent in zip(primals, tangents, strict=True)
        ]
        value, tangent = forward_ad.unpack_dual(fn(*inputs))  # type: ignore[no-untyped-call]
    return value, torch.zeros_like(value) if tangent is None else tangent
