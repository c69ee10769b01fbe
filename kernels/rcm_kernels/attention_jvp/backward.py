"""The gradient of the primal output as two Triton kernels: one for queries, one for keys and values.

With P recomputed from the saved log-sum-exp, delta = rowsum(g o O) and dS = P o (g V^T - delta):
dQ = scale dS K, dK = scale dS^T Q, dV = P^T g (FlashAttention-2, arXiv 2307.08691, algorithm 2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.attention_jvp.configs import backward_config, case_of, pad_width
from rcm_kernels.attention_jvp.problem import Options, Result, Tangents
from rcm_kernels.attention_jvp.tiles import (
    LOG2E,
    describable,
    keys_of,
    mask_of,
    place,
    place_of,
    precision_of,
    scores,
    source,
    store,
    tile,
    whole,
    wide,
)


@triton.jit
def query_kernel(
    q, q_strides, k, k_strides, v, v_strides, g, g_strides, mask, mask_strides, lengths, lse, delta,
    dq, dq_strides, heads, group, row_end, key_end, scale,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Compute dQ of a block of queries of one head in a loop over its keys. lse, delta float32 [b, h, n]."""
    row_of_heads, first = place_of(row_end, BLOCK_M)
    batch, head = row_of_heads // heads, row_of_heads % heads
    shared = head // group
    rows = first + tl.arange(0, BLOCK_M)
    if mask is not None:
        mask = place(mask, mask_strides, batch, head)
    qs = tile(q, q_strides, batch, head, first, row_end, BLOCK_M, BLOCK_D, D, False, WIDE, DESCRIBED)
    gs = tile(g, g_strides, batch, head, first, row_end, BLOCK_M, BLOCK_E, E, False, WIDE, DESCRIBED)
    line = row_of_heads.to(tl.int64) * row_end + rows
    top = tl.load(lse + line, mask=rows < row_end, other=float("inf")) * LOG2E
    offset = tl.load(delta + line, mask=rows < row_end, other=0.0)

    end = keys_of(lengths, batch, key_end)
    last = tl.minimum(end, first + BLOCK_M) if CAUSAL else end
    gradient = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, last, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        ks = tile(k, k_strides, batch, shared, start, end, BLOCK_N, BLOCK_D, D, WHOLE, WIDE, DESCRIBED)
        vs = tile(v, v_strides, batch, shared, start, end, BLOCK_N, BLOCK_E, E, WHOLE, WIDE, DESCRIBED)
        S = scores(qs, ks, mask, mask_strides, rows, columns, row_end, end, scale, CAUSAL, WHOLE, PRECISION)
        dP = tl.dot(gs, tl.trans(vs), input_precision=PRECISION)
        dS = tl.exp2(S - top[:, None]) * (dP - offset[:, None])
        gradient = tl.dot(dS.to(ks.dtype), ks, gradient, input_precision=PRECISION)
    store(dq, dq_strides, batch, head, gradient * scale, first, row_end, BLOCK_M, BLOCK_D, D, DESCRIBED)


@triton.jit
def key_kernel(
    q, q_strides, k, k_strides, v, v_strides, g, g_strides, mask, mask_strides, lengths, lse, delta,
    dk, dk_strides, dv, dv_strides, heads, group, row_end, key_end, scale,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Compute dK, dV of a block of keys in a loop over the queries of all heads that share them."""
    shares = heads // group
    row_of_heads, first = place_of(key_end, BLOCK_N)
    batch, shared = row_of_heads // shares, row_of_heads % shares
    columns = first + tl.arange(0, BLOCK_N)
    end = keys_of(lengths, batch, key_end)
    ks = tile(k, k_strides, batch, shared, first, end, BLOCK_N, BLOCK_D, D, WHOLE, WIDE, DESCRIBED)
    vs = tile(v, v_strides, batch, shared, first, end, BLOCK_N, BLOCK_E, E, WHOLE, WIDE, DESCRIBED)
    key_gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    value_gradient = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    begin = (first // BLOCK_M) * BLOCK_M if CAUSAL else 0
    for turn in range(group):
        head = shared * group + turn
        mask_base = mask
        if mask is not None:
            mask_base = place(mask, mask_strides, batch, head)
        for start in range(begin, row_end, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            qs = tile(q, q_strides, batch, head, start, row_end, BLOCK_M, BLOCK_D, D, False, WIDE, DESCRIBED)
            gs = tile(g, g_strides, batch, head, start, row_end, BLOCK_M, BLOCK_E, E, False, WIDE, DESCRIBED)
            line = (batch * heads + head).to(tl.int64) * row_end + rows
            top = tl.load(lse + line, mask=rows < row_end, other=float("inf")) * LOG2E
            offset = tl.load(delta + line, mask=rows < row_end, other=0.0)
            S = scores(
                qs, ks, mask_base, mask_strides, rows, columns, row_end, end, scale, CAUSAL, WHOLE, PRECISION
            )
            P = tl.exp2(S - top[:, None])
            value_gradient = tl.dot(tl.trans(P.to(gs.dtype)), gs, value_gradient, input_precision=PRECISION)
            dP = tl.dot(gs, tl.trans(vs), input_precision=PRECISION)
            dS = P * (dP - offset[:, None])
            key_gradient = tl.dot(tl.trans(dS.to(qs.dtype)), qs, key_gradient, input_precision=PRECISION)
    store(dk, dk_strides, batch, shared, key_gradient * scale, first, key_end, BLOCK_N, BLOCK_D, D, DESCRIBED)
    store(dv, dv_strides, batch, shared, value_gradient, first, key_end, BLOCK_N, BLOCK_E, E, DESCRIBED)


def backward(
    q: Tensor, k: Tensor, v: Tensor, result: Result, gradient: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of q, k, v for ``gradient`` of the output, from the saved output and log-sum-exp."""
    batch, heads, rows, dim = q.shape
    shared, keys, width = k.shape[1], k.shape[2], v.shape[3]
    delta = (gradient.float() * result.out.float()).sum(-1)
    # a fully masked row has lse = -inf; with +inf instead its probabilities are zero
    lse = result.lse.masked_fill(result.lse == -torch.inf, torch.inf)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    mask, mask_strides = mask_of(options, (batch, heads, rows, keys))
    case = case_of(q, v, Tangents(None, None, None), describable(options, (q, k, v, gradient, dq, dk, dv)))
    config = backward_config(case)
    qs, gs, dqs = (source(x, config.block_m, case.described) for x in (q, gradient, dq))
    ks, vs, dks, dvs = (source(x, config.block_n, case.described) for x in (k, v, dk, dv))
    inputs = (
        qs, q.stride(), ks, k.stride(), vs, v.stride(), gs, gradient.stride(),
        mask, mask_strides, options.lengths, lse, delta,
    )  # fmt: skip
    sizes = (heads, heads // shared, rows, keys, options.scale)
    constants = {
        "D": dim, "E": width, "BLOCK_D": pad_width(dim), "BLOCK_E": pad_width(width),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "CAUSAL": options.causal, "WHOLE": whole(options, keys, config),
        "PRECISION": precision_of(q), "WIDE": wide(q), "DESCRIBED": case.described,
        "num_warps": config.warps, "num_stages": config.stages,
    }  # fmt: skip
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        grid = (triton.cdiv(rows, config.block_m) * batch * heads,)
        query_kernel[grid](*inputs, dqs, dq.stride(), *sizes, **constants)
        grid = (triton.cdiv(keys, config.block_n) * batch * shared,)
        key_kernel[grid](*inputs, dks, dk.stride(), dvs, dv.stride(), *sizes, **constants)
    return dq, dk, dv
