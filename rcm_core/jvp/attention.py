"""Replacement of softmax attention inside unmodified modules by an operator with a forward-mode rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rcm_kernels.attention_jvp import attention
from torch import Tensor
from torch.overrides import TorchFunctionMode


class flash_jvp(TorchFunctionMode):  # noqa: N801
    """Within ``with flash_jvp():`` every ``scaled_dot_product_attention`` calls ``rcm_kernels.attention_jvp``.

    PyTorch's fused attention has no forward-mode derivative; all other operators of a transformer have one.
    ``backend``: backend of the kernel.
    """

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, backend=self.backend, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    if dropout_p:
        raise ValueError(
            f"attention dropout is {dropout_p}, but dropout has no tangent because two passes use two masks; "
            "put the network in eval mode or set its attention dropout to 0"
        )
    return attention(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **options)
