"""Attention with its tangent, compared with its alternatives in one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rcm_kernels import attention_jvp
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from experiments.kernels.timing import Cost, measure
from rcm_core.units import MIB

LENGTHS = (1024, 4096, 16384, 32760, 65536)
HEADS = ((12, 128), (40, 128), (16, 64))
TEXT = 512
PLAIN = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
LONGEST_MATH = 4096
"""Maximum length for math attention under ``torch.func.jvp``, which keeps several matrices of heads x n x m."""


def draws(heads: int, length: int, keys: int, dim: int, device: torch.device) -> list[Tensor]:
    """Draw q, k, v and their tangents in bfloat16."""
    rng = torch.Generator(device=device).manual_seed(0)
    sizes = [(1, heads, length, dim), (1, heads, keys, dim), (1, heads, keys, dim)]
    return [torch.randn(s, generator=rng, device=device, dtype=torch.bfloat16) for s in (*sizes, *sizes)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[str, Cost]:
    """Measure the best backend of ``scaled_dot_product_attention``, including flash-attn if it is installed."""
    found: dict[str, Cost] = {}
    for backend in PLAIN if q.is_cuda else (SDPBackend.MATH,):
        with sdpa_kernel(backend):
            try:
                found[backend.name] = measure(lambda: sdpa(q, k, v), q.device)
            except RuntimeError:  # the backend does not support these shapes
                continue
    if q.is_cuda and importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_func

        rows = [x.transpose(1, 2) for x in (q, k, v)]
        found["flash-attn"] = measure(lambda: flash_attn_func(*rows), q.device)
    return min(found.items(), key=lambda item: item[1].milliseconds)


def math(q: Tensor, k: Tensor, v: Tensor, moved: tuple[Tensor, ...]) -> Cost:
    """Measure math attention under ``torch.func.jvp``, the alternative without a kernel."""

    def call() -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(sdpa, (q, k, v), moved)

    with torch.no_grad():
        return measure(call, q.device)


def peer(q: Tensor, k: Tensor, v: Tensor, moved: tuple[Tensor, ...]) -> Cost | str:
    """Measure the package jvp_flash_attention, or return why it cannot be measured."""
    if not importlib.util.find_spec("jvp_flash_attention"):
        return "not installed (pip install --no-deps jvp_flash_attention)"
    from jvp_flash_attention.jvp_attention import JVPAttn

    def call() -> Any:
        with torch.no_grad(), forward_ad.dual_level():
            return JVPAttn.fwd_dual(*[forward_ad.make_dual(x, t) for x, t in zip((q, k, v), moved)])

    try:
        return measure(call, q.device)
    except Exception as error:  # a third-party kernel may fail in any way
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def cases(
    device: torch.device, lengths: tuple[int, ...], text: int, ceiling: float
) -> Iterator[dict[str, Any]]:
    """Yield a row of results for every length, number of heads, and self- or cross-attention."""
    for heads, dim in HEADS:
        for length in lengths:
            for kind, keys in (("self", length), ("cross", text)):
                torch.cuda.empty_cache() if device.type == "cuda" else None
                yield case(kind, heads, dim, length, keys, device, ceiling)


def case(
    kind: str, heads: int, dim: int, length: int, keys: int, device: torch.device, ceiling: float
) -> dict[str, Any]:
    """Measure times, TFLOP/s and ratios of one shape; text has no tangent, so cross-attention has four products."""
    q, k, v, *moved = draws(heads, length, keys, dim, device)
    given = moved if kind == "self" else [moved[0], None, None]
    products = 6 if kind == "self" else 4
    ours = measure(lambda: attention_jvp(q, k, v, *given), device)
    name, best = plain(q, k, v)
    rate = products * 2 * heads * length * keys * dim / ours.milliseconds / 1e9
    row: dict[str, Any] = {
        "kind": kind, "heads": heads, "dim": dim, "queries": length, "keys": keys,
        "milliseconds": ours.milliseconds, "megabytes": ours.megabytes, "tflops": rate, "of_ceiling": rate / ceiling,
        "plain": name, "plain_milliseconds": best.milliseconds, "times_plain": ours.milliseconds / best.milliseconds,
        "in_and_out_megabytes": sum(x.nbytes for x in (q, k, v, *(g for g in given if g is not None), q, q)) / MIB,
    }  # fmt: skip
    if kind == "self":
        row |= _against("math", lambda: math(q, k, v, tuple(moved)), length <= LONGEST_MATH, ours)
        row |= _against("jvp_flash_attention", lambda: peer(q, k, v, tuple(moved)), True, ours)
    return row


def _against(name: str, call: Callable[[], Cost | str], wanted: bool, ours: Cost) -> dict[str, Any]:
    found = call() if wanted else "does not fit"
    if isinstance(found, str):
        return {name: found}
    return {name: found.milliseconds, f"faster_than_{name}": found.milliseconds / ours.milliseconds}
