"""Networks in float64 throughout, for derivatives by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Exactly(TorchFunctionMode):
    """Ignore the casts to float32 inside networks if a tensor is float64; no formula changes."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        lowers = func is Tensor.float or (
            func is Tensor.to and torch.float32 in (*args[1:], named.get("dtype"))
        )
        if lowers and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **named)
