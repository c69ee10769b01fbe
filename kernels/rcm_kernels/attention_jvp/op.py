"""The operator: one autograd.Function with a forward-mode rule and a gradient, and two public functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rcm_kernels.attention_jvp import torch_route
from rcm_kernels.attention_jvp.problem import Options, Result, Tangents
from rcm_kernels.dispatch import choose_backend

LAYOUTS = {"bhnd": "[b, h, n, d]", "bnhd": "[b, n, h, d]"}


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
    key_lengths: Tensor | None = None,
    layout: str = "bhnd",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return softmax attention and its tangent along (``tq``, ``tk``, ``tv``), both [b, h, n, e] in the dtype of
    ``q``.

    q [b, h, n, d], k [b, h, m, d], v [b, h, m, e], with any strides; with ``layout="bnhd"`` heads come third in
    inputs and results. A tangent of None is zero and costs nothing. ``attn_mask``, ``is_causal``, ``scale`` and
    ``enable_gqa`` (k and v have fewer heads, each shared by several of q) are those of
    ``torch.nn.functional.scaled_dot_product_attention``. Sequence i attends to its first ``key_lengths[i]`` keys. The
    output has a gradient to q, k, v; the tangent has none. A fully masked row returns zeros.
    Accumulates in float32 (float64 for float64 inputs). Source: rCM, arXiv 2510.08431, section 4 (E31, E32).
    ValueError for inputs that do not fit or a backend that is not available.
    """
    inputs = [_laid_out(x, layout) for x in (q, k, v, tq, tk, tv)]
    options = _options(inputs, attn_mask, is_causal, scale, enable_gqa, key_lengths)
    chosen = choose_backend(backend, *inputs[:3])
    out, tangent, _ = _apply(*inputs, options, chosen)
    results = out, torch.zeros_like(out) if tangent is None else tangent
    return results if layout == "bhnd" else (results[0].transpose(1, 2), results[1].transpose(1, 2))


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
    """Compute ``scaled_dot_product_attention`` with support for forward-mode and reverse-mode AD."""
    options = _options([q, k, v, None, None, None], attn_mask, is_causal, scale, enable_gqa, None)
    chosen = choose_backend(backend, q, k, v)
    if torch.is_grad_enabled():
        return _apply(q, k, v, None, None, None, options, chosen)[0]
    # without gradient one pass over the keys computes value and tangent
    (q, tq), (k, tk), (v, tv) = _unpack(q), _unpack(k), _unpack(v)
    result = _run(q, k, v, Tangents(tq, tk, tv), options, chosen)
    if result.tangent is None:
        return result.out
    dual: Tensor = forward_ad.make_dual(result.out, result.tangent)  # type: ignore[no-untyped-call]
    return dual


class _Attention(torch.autograd.Function):
    """Attention as (out, its tangent or None, log-sum-exp); only ``out`` is differentiable.

    torch.compile can trace this class, but rejects a class with its own rules for jvp and vmap.
    """

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
        return result.out, result.tangent, result.lse

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
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 8
        q, k, v, out, lse = ctx.saved_tensors
        result = Result(out, None, lse)
        input_gradients = _backward(ctx.backend, q, k, v, result, gradients[0], ctx.options)
        return (*input_gradients, None, None, None, None, None)


class _Transformed(_Attention):
    """Attention with the rules of forward-mode AD and vmap."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None, None]:
        q, k, v = ctx.saved_tensors
        return _run(q, k, v, Tangents(*tangents[:3]), ctx.options, ctx.backend).tangent, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        """Fold the mapped dimension into the batch."""
        size = info.batch_size
        *tensors, options, backend = inputs

        def join(x: Tensor | None, dim: int | None) -> Tensor | None:
            if x is None:
                return None
            x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        joined = [join(x, dim) for x, dim in zip(tensors, in_dims)]
        results = _apply(*joined, options.repeat(size), backend)
        parted = tuple(None if x is None else x.reshape(size, -1, *x.shape[1:]) for x in results)
        return parted, tuple(None if x is None else 0 for x in parted)


def _apply(*inputs: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    function = _Attention if torch.compiler.is_compiling() else _Transformed
    results: tuple[Tensor, Tensor | None, Tensor] = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return results


def _run(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, options: Options, backend: str) -> Result:
    """Return the result with output and tangent in the dtype of ``q``."""
    if backend != "triton":
        return torch_route.forward(q, k, v, tangents, options, backend)
    if torch.compiler.is_compiling():
        from rcm_kernels.attention_jvp.compiled import forward
    else:
        from rcm_kernels.attention_jvp.forward import forward
    return forward(q, k, v, tangents, options)


def _backward(backend: str, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v."""
    if backend != "triton":
        return torch_route.backward(*inputs)
    if torch.compiler.is_compiling():
        from rcm_kernels.attention_jvp.compiled import backward
    else:
        from rcm_kernels.attention_jvp.backward import backward
    return backward(*inputs)


def _unpack(x: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return primal, tangent


def _laid_out(x: Any, layout: str) -> Any:
    """Return a view [b, h, n, d]."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; use {' or '.join(map(repr, LAYOUTS))}")
    return x if x is None or layout == "bhnd" or x.ndim != 4 else x.transpose(1, 2)


def _options(
    inputs: list[Any],
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    enable_gqa: bool,
    lengths: Tensor | None,
) -> Options:
    """Check q, k, v and their tangents in ``inputs``, all [b, h, n, d], and return the options."""
    q, k, v = inputs[:3]
    _check_tensors(q, k, v, enable_gqa)
    for name, x, tangent in zip("qkv", (q, k, v), inputs[3:]):
        if tangent is None:
            continue
        if (tangent.shape, tangent.dtype, tangent.device) != (x.shape, x.dtype, x.device):
            raise ValueError(
                f"tangent of {name} is {_describe(tangent)}, expected {_describe(x)} like {name}"
            )
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if mask is not None:
        _check_mask(mask, shape, q)
    if lengths is not None and (
        lengths.shape != (q.shape[0],) or lengths.is_floating_point() or lengths.device != q.device
    ):
        raise ValueError(f"key_lengths is {_describe(lengths)}, expected {q.shape[0]} integers on {q.device}")
    return Options(mask, 1 / math.sqrt(q.shape[-1]) if scale is None else scale, causal, lengths)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    if not q.ndim == k.ndim == v.ndim == 4 or 0 in (*q.shape, *k.shape, *v.shape):
        raise ValueError(f"{_all_said(q, k, v)}: expected four dimensions each, none empty")
    if (q.dtype, q.device) != (k.dtype, k.device) or (q.dtype, q.device) != (v.dtype, v.device):
        raise ValueError(f"{_all_said(q, k, v)}: expected one dtype and one device")
    if not q.is_floating_point():
        raise ValueError(f"{_all_said(q, k, v)}: expected a floating dtype")
    heads = (q.shape[1], k.shape[1])
    shared = heads[0] % heads[1] == 0 if enable_gqa else heads[0] == heads[1]
    if enable_gqa and not shared:
        raise ValueError(f"{heads[0]} query heads cannot share {heads[1]} key heads evenly")
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1] or q.shape[0] != k.shape[0] or not shared:
        raise ValueError(
            f"{_all_said(q, k, v)} do not fit; expected [b, h, n, d], [b, h, m, d] and [b, h, m, e]"
        )


def _check_mask(mask: Tensor, shape: tuple[int, ...], q: Tensor) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"attn_mask is {_describe(mask)}; expected a boolean (True = attend) or a floating mask"
        )
    if mask.device != q.device:
        raise ValueError(f"attn_mask is on {mask.device}, the query on {q.device}; move one")
    if mask.ndim > 4 or any(a not in (1, b) for a, b in zip(reversed(mask.shape), reversed(shape))):
        raise ValueError(f"attn_mask has shape {list(mask.shape)}, which does not broadcast to {list(shape)}")
    if mask.requires_grad:
        raise ValueError("attn_mask requires a gradient, but masks must be constant; detach it")


def _all_said(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"query {_describe(q)}, key {_describe(k)} and value {_describe(v)}"


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"
