"""The operator: one autograd.Function with a forward-mode rule and a gradient, and two ways to call it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rcm_kernels.attention_jvp import chunked, reference
from rcm_kernels.attention_jvp.problem import Options, Result, Tangents, accumulation_dtype
from rcm_kernels.dispatch import choose_backend

IMPLEMENTATIONS = {"reference": reference.forward, "chunked": chunked.forward}


def attention_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None = None,
    tk: Tensor | None = None,
    tv: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Softmax attention and its tangent along (``tq``, ``tk``, ``tv``), both [b, h, n, d] in the dtype of
    ``q``.

    Shapes and options are those of ``torch.nn.functional.scaled_dot_product_attention``; a tangent of None is
    zero. The output carries a gradient to q, k, v; the tangent carries none. A row whose every key is masked
    gives zeros. Accumulates in float32 (float64 for float64 inputs). Source: rCM, arXiv 2510.08431, section 4
    (E31, E32). ValueError for shapes that do not fit or a backend that cannot be had.
    """
    if enable_gqa:
        k, v, tk, tv = (_repeat_heads(x, q) for x in (k, v, tk, tv))
    _check(q, k, v, Tangents(tq, tk, tv))
    options = Options(attn_mask, 1 / math.sqrt(q.shape[-1]) if scale is None else scale, is_causal)
    chosen = choose_backend(backend, k.shape[-2])
    out, tangent, _ = _Attention.apply(q, k, v, tq, tk, tv, options, chosen)  # type: ignore[no-untyped-call]
    return out, torch.zeros_like(out) if tangent is None else tangent


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Tensor:
    """``scaled_dot_product_attention`` that forward-mode AD and reverse-mode AD go through."""
    if enable_gqa:
        k, v = _repeat_heads(k, q), _repeat_heads(v, q)
    _check(q, k, v, Tangents(None, None, None))
    options = Options(attn_mask, 1 / math.sqrt(q.shape[-1]) if scale is None else scale, is_causal)
    chosen = choose_backend(backend, k.shape[-2])
    if torch.is_grad_enabled():
        out, _, _ = _Attention.apply(q, k, v, None, None, None, options, chosen)  # type: ignore[no-untyped-call]
        return out  # type: ignore[no-any-return]
    # without gradient the value and the tangent come out of one pass over the keys
    (q, tq), (k, tk), (v, tv) = _unpack(q), _unpack(k), _unpack(v)
    result = _run(q, k, v, Tangents(tq, tk, tv), options, chosen)
    out = result.out.to(q.dtype)
    if result.tangent is None:
        return out
    dual: Tensor = forward_ad.make_dual(out, result.tangent.to(q.dtype))  # type: ignore[no-untyped-call]
    return dual


class _Attention(torch.autograd.Function):
    """(out, tangent along the given tangents or None, log-sum-exp); only ``out`` is differentiable."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tq: Tensor | None,
        tk: Tensor | None,
        tv: Tensor | None,
        options: Options,
        backend: str,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        result = _run(q, k, v, Tangents(tq, tk, tv), options, backend)
        tangent = None if result.tangent is None else result.tangent.to(q.dtype)
        return result.out.to(q.dtype), tangent, result.lse

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None, Tensor]
    ) -> None:
        q, k, v, _, _, _, ctx.options, ctx.backend = inputs
        out, tangent, lse = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[x for x in (tangent, lse) if x is not None])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.save_for_forward(q, k, v)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None, None]:
        q, k, v = ctx.saved_tensors
        result = _run(q, k, v, Tangents(*tangents[:3]), ctx.options, ctx.backend)
        return None if result.tangent is None else result.tangent.to(q.dtype), None, None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 8
        q, k, v, out, lse = ctx.saved_tensors
        dtype = accumulation_dtype(q.dtype)
        wide = [x.to(dtype) for x in (q, k, v, out, gradients[0])]
        result = Result(wide[3], None, lse)
        found = chunked.backward(wide[0], wide[1], wide[2], result, wide[4], ctx.options)
        return (*[d.to(q.dtype) for d in found], None, None, None, None, None)


def _run(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, options: Options, backend: str) -> Result:
    dtype = accumulation_dtype(q.dtype)
    moved = Tangents(*[None if x is None else x.to(dtype) for x in tangents])
    return IMPLEMENTATIONS[backend](q.to(dtype), k.to(dtype), v.to(dtype), moved, options)


def _unpack(x: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return primal, tangent


def _repeat_heads(x: Any, q: Tensor) -> Any:
    """Keys or values [b, g, m, d] with each of g groups repeated for its h / g query heads."""
    if x is None:
        return None
    if q.shape[-3] % x.shape[-3]:
        raise ValueError(f"{q.shape[-3]} query heads cannot share {x.shape[-3]} key heads evenly")
    return x.repeat_interleave(q.shape[-3] // x.shape[-3], -3)


def _check(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents) -> None:
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or q.shape[:-2] != k.shape[:-2]:
        raise ValueError(
            f"query {tuple(q.shape)}, key {tuple(k.shape)} and value {tuple(v.shape)} do not fit; "
            "expected [b, h, n, d], [b, h, m, d] and [b, h, m, e]"
        )
    for name, x, tangent in zip("qkv", (q, k, v), tangents):
        if tangent is not None and tangent.shape != x.shape:
            raise ValueError(
                f"tangent of {name} has shape {tuple(tangent.shape)}, expected {tuple(x.shape)} as {name}"
            )
