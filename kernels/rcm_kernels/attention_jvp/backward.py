"""The gradient of the primal output as two Triton kernels: one for queries, one for keys and values.

With P recomputed from the saved log-sum-exp, delta = rowsum(g o O) and dS = P o (g V^T - delta):
dQ = scale dS K, dK = scale dS^T Q, dV = P^T g (FlashAttention-2, arXiv 2307.08691, algorithm 2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.attention_jvp.configs import backward_config, case_of
from rcm_kernels.attention_jvp.problem import Options, Result, Tangents
from rcm_kernels.attention_jvp.tiles import (
    LOG2E,
    keys_of,
    mask_of,
    padded,
    place,
    precision_of,
    scores,
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
):  # fmt: skip
    """dQ of a block of queries of one head: a walk over its keys. lse, delta float32 [b, h, n]."""
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    shared = head // group
    first = tl.program_id(0) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    width, depth = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    k, v = place(k, k_strides, batch, shared), place(v, v_strides, batch, shared)
    if mask is not None:
        mask = place(mask, mask_strides, batch, head)
    qs = tile(
        place(q, q_strides, batch, head), rows, q_strides[2], row_end, depth, q_strides[3], D, False, WIDE
    )
    gs = tile(
        place(g, g_strides, batch, head), rows, g_strides[2], row_end, width, g_strides[3], E, False, WIDE
    )
    line = tl.program_id(1).to(tl.int64) * row_end + rows
    top = tl.load(lse + line, mask=rows < row_end, other=float("inf")) * LOG2E
    offset = tl.load(delta + line, mask=rows < row_end, other=0.0)

    end = keys_of(lengths, batch, key_end)
    last = tl.minimum(end, first + BLOCK_M) if CAUSAL else end
    gradient = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, last, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        ks = tile(k, columns, k_strides[2], end, depth, k_strides[3], D, WHOLE, WIDE)
        vs = tile(v, columns, v_strides[2], end, width, v_strides[3], E, WHOLE, WIDE)
        S = scores(qs, ks, mask, mask_strides, rows, columns, row_end, end, scale, CAUSAL, WHOLE, PRECISION)
        dP = tl.dot(gs, tl.trans(vs), input_precision=PRECISION)
        dS = tl.exp2(S - top[:, None]) * (dP - offset[:, None])
        gradient = tl.dot(dS.to(ks.dtype), ks, gradient, input_precision=PRECISION)
    dq = place(dq, dq_strides, batch, head)
    store(dq, gradient * scale, rows, dq_strides[2], row_end, depth, dq_strides[3], D)


@triton.jit
def key_kernel(
    q, q_strides, k, k_strides, v, v_strides, g, g_strides, mask, mask_strides, lengths, lse, delta,
    dk, dk_strides, dv, dv_strides, heads, group, row_end, key_end, scale,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dK, dV of a block of keys: a walk over the queries of all heads that share them."""
    shares = heads // group
    batch, shared = tl.program_id(1) // shares, tl.program_id(1) % shares
    first = tl.program_id(0) * BLOCK_N
    columns = first + tl.arange(0, BLOCK_N)
    width, depth = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    end = keys_of(lengths, batch, key_end)
    ks = tile(
        place(k, k_strides, batch, shared), columns, k_strides[2], end, depth, k_strides[3], D, WHOLE, WIDE
    )
    vs = tile(
        place(v, v_strides, batch, shared), columns, v_strides[2], end, width, v_strides[3], E, WHOLE, WIDE
    )
    key_gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    value_gradient = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    begin = (first // BLOCK_M) * BLOCK_M if CAUSAL else 0
    for turn in range(group):
        head = shared * group + turn
        q_base, g_base = place(q, q_strides, batch, head), place(g, g_strides, batch, head)
        mask_base = mask
        if mask is not None:
            mask_base = place(mask, mask_strides, batch, head)
        for start in range(begin, row_end, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            qs = tile(q_base, rows, q_strides[2], row_end, depth, q_strides[3], D, False, WIDE)
            gs = tile(g_base, rows, g_strides[2], row_end, width, g_strides[3], E, False, WIDE)
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
    dk, dv = place(dk, dk_strides, batch, shared), place(dv, dv_strides, batch, shared)
    store(dk, key_gradient * scale, columns, dk_strides[2], key_end, depth, dk_strides[3], D)
    store(dv, value_gradient, columns, dv_strides[2], key_end, width, dv_strides[3], E)


def backward(
    q: Tensor, k: Tensor, v: Tensor, result: Result, gradient: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v for ``gradient`` of the output, from the saved output and log-sum-exp."""
    batch, heads, rows, dim = q.shape
    shared, keys, width = k.shape[1], k.shape[2], v.shape[3]
    delta = (gradient.float() * result.out.float()).sum(-1)
    # a row that attends to nothing has lse = -inf; from +inf its probabilities come out as zero
    lse = result.lse.masked_fill(result.lse == -torch.inf, torch.inf)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    mask, mask_strides = mask_of(options, (batch, heads, rows, keys))
    config = backward_config(case_of(q, v, Tangents(None, None, None)))
    inputs = (
        q, q.stride(), k, k.stride(), v, v.stride(), gradient, gradient.stride(),
        mask, mask_strides, options.lengths, lse, delta,
    )  # fmt: skip
    sizes = (heads, heads // shared, rows, keys, options.scale)
    constants = {
        "D": dim, "E": width, "BLOCK_D": padded(dim), "BLOCK_E": padded(width),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "CAUSAL": options.causal, "WHOLE": whole(options, keys, config),
        "PRECISION": precision_of(q), "WIDE": wide(q), "num_warps": config.warps, "num_stages": config.stages,
    }  # fmt: skip
    grid = (triton.cdiv(rows, config.block_m), batch * heads)
    query_kernel[grid](*inputs, dq, dq.stride(), *sizes, **constants)
    grid = (triton.cdiv(keys, config.block_n), batch * shared)
    key_kernel[grid](*inputs, dk, dk.stride(), dv, dv.stride(), *sizes, **constants)
    return dq, dk, dv
