"""Choice of a kernel's implementation: named by the caller, or by the rules of ``choose_backend``."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

BACKENDS = ("reference", "chunked", "triton")

LONG_KEYS = 1024
"""Minimum number of keys for "auto" to stream over blocks of keys instead of forming the whole score matrix."""
LARGEST_WIDTH = 256
"""Maximum head dimension of the Triton kernels."""

LARGEST_FLOAT32 = 64
"""Maximum float32 head dimension for "auto": real float32 products use no tensor cores, and wider heads spill."""

log = logging.getLogger("rcm_kernels")


def choose_backend(requested: str, q: Tensor, k: Tensor, v: Tensor) -> str:
    """Return the backend for q [b, h, n, d], k [b, g, m, d], v [b, g, m, e].

    "auto": triton on a GPU if it is available and does not spill; else chunked for long keys and reference for
    short ones. ValueError says why a requested backend is not available.
    """
    if requested not in ("auto", *BACKENDS):
        raise ValueError(f"unknown backend {requested!r}; use {_list_names()}")
    missing = why_not_triton(q.device.type, q.dtype, max(q.shape[-1], v.shape[-1]))
    if requested == "triton" and missing:
        raise ValueError(f"backend 'triton' is not available: {missing}; use 'auto'")
    if requested != "auto":
        return requested
    chosen = "chunked" if k.shape[-2] >= LONG_KEYS else "reference"
    fits = q.dtype != torch.float32 or max(q.shape[-1], v.shape[-1]) <= LARGEST_FLOAT32
    if q.device.type != "cpu" and not missing and fits:
        chosen = "triton"
    if not torch.compiler.is_compiling():
        _say(chosen, q.device.type, missing)
    return chosen


def why_not_triton(device: str, dtype: torch.dtype, width: int) -> str | None:
    """Return why the Triton kernels do not support these inputs; None if they do."""
    interpreted = triton_interprets()
    if interpreted is None:
        return "Triton is not installed (pip install triton, on Linux)"
    if device != "cuda" and not interpreted:
        return f"the tensors are on {device} and Triton's interpreter is off (set TRITON_INTERPRET=1 before the start)"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"its kernels take float32, float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if width > LARGEST_WIDTH:
        return f"its kernels take heads of up to {LARGEST_WIDTH} channels, not {width}"
    return None


def triton_interprets() -> bool | None:
    """Return whether kernels run in Triton's interpreter; None without Triton."""
    return _triton_interprets()


# torch.compiler.assume_constant_result sets this too, but imports torch._dynamo (0.6 s) first.
triton_interprets._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _triton_interprets() -> bool | None:
    try:
        import triton
    except ImportError:
        return None
    return bool(triton.knobs.runtime.interpret)


@cache
def _say(chosen: str, device: str, missing: str | None) -> None:
    log.info("attention_jvp on %s: %s%s", device, chosen, f" ({missing})" if missing else "")


def _list_names() -> str:
    return ", ".join(repr(name) for name in ("auto", *BACKENDS))
