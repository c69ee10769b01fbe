"""Attention without a tangent, by the best that this machine has: chosen once per device, logged, shown by doctor."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

log = logging.getLogger("rcm_kernels")

FLASH_WIDTH = 256
"""Largest head of flash-attn."""
HOPPER = (9, 0)
"""From here on cuDNN's attention is faster than PyTorch's own flash attention."""


@cache
def plain_backend(device: torch.device) -> str:
    """flash-attn where it is installed (extra ``gpu``), else cudnn or flash, PyTorch's own; torch on a CPU."""
    if device.type != "cuda":
        chosen = "torch"
    elif _has_flash_attn():
        chosen = "flash-attn"
    elif torch.cuda.get_device_capability(device) >= HOPPER:
        chosen = "cudnn"
    else:
        chosen = "flash"
    log.info("attention without a tangent on %s: %s", device, chosen)
    return chosen


def _has_flash_attn() -> bool:
    """Whether it is installed and made for this torch."""
    try:
        importlib.import_module("flash_attn")
    except ImportError:
        return False
    return True


class plain_attention(TorchFunctionMode):  # noqa: N801
    """``with plain_attention():`` every ``scaled_dot_product_attention`` without a tangent runs on that backend.

    What it does not take (masks for flash-attn, dtypes, widths) goes to the next best; what has a tangent goes to
    the mode that was entered before.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention or _has_tangent(
            (*args, *options.values())
        ):
            return func(*args, **options)
        return _plain(*args, **options)


@contextmanager
def fastest_attention() -> Iterator[None]:
    """``plain_attention`` where there is a GPU; on a CPU everything stays as it is."""
    with plain_attention() if torch.cuda.is_available() else nullcontext():
        yield


def _has_tangent(values: Sequence[Any]) -> bool:
    tensors = (x for x in values if isinstance(x, Tensor))
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)  # type: ignore[no-untyped-call]


def _plain(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
) -> Any:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    backend = plain_backend(query.device)
    if backend == "flash-attn" and attn_mask is None and not rest and _flash_takes(query, value, options):
        from flash_attn import flash_attn_func

        rows = [x.transpose(1, 2) for x in (query, key, value)]
        chosen = {"causal": options.get("is_causal", False), "softmax_scale": options.get("scale")}
        return flash_attn_func(*rows, **chosen).transpose(1, 2)
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if backend == "cudnn":
        order = [SDPBackend.CUDNN_ATTENTION, *order]
    with nullcontext() if backend == "torch" else sdpa_kernel(order, set_priority=True):
        return sdpa(query, key, value, attn_mask, *rest, **options)


def _flash_takes(query: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Self-attention and cross-attention alike: half precision, one width for all."""
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.ndim == 4
    widths = query.shape[-1] == value.shape[-1] <= FLASH_WIDTH
    # its causal mask ends at the last key, PyTorch's begins at the first: the same for equal lengths only
    corners = not options.get("is_causal") or query.shape[-2] == value.shape[-2]
    return fits and widths and corners and not options.get("dropout_p") and not options.get("enable_gqa")
