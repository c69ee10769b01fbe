"""Attention without a tangent by the fastest available backend: chosen once per device, logged, shown by doctor."""

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
"""Maximum head dimension of flash-attn."""
HOPPER = (9, 0)
"""Compute capability from which cuDNN's attention is faster than PyTorch's flash attention."""


@cache
def plain_backend(device: torch.device) -> str:
    """Return flash-attn if it is installed (extra ``gpu``), else PyTorch's cudnn or flash; torch on a CPU."""
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
    """Return whether flash-attn is installed and works with this torch."""
    try:
        importlib.import_module("flash_attn")
    except ImportError:
        return False
    return True


class plain_attention(TorchFunctionMode):  # noqa: N801
    """Within ``with plain_attention():`` every ``scaled_dot_product_attention`` without a tangent uses that backend.

    Calls that it does not support (masks for flash-attn, dtypes, widths) use the next best; calls with a tangent go to
    the outer mode.
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
    """Use ``plain_attention`` on a machine with a GPU; without effect on a CPU."""
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
    """Return whether flash-attn supports the call, self- or cross-attention: half precision, one width for all."""
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.ndim == 4
    widths = query.shape[-1] == value.shape[-1] <= FLASH_WIDTH
    # its causal mask is aligned to the last key, PyTorch's to the first: they agree only for equal lengths
    corners = not options.get("is_causal") or query.shape[-2] == value.shape[-2]
    return fits and widths and corners and not options.get("dropout_p") and not options.get("enable_gqa")
