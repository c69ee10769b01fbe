"""The streaming form (E32) as one Triton kernel: output, tangent and log-sum-exp in one pass over the keys.

One accumulator takes both P dV and H V. Absent inputs (a tangent, a mask, key lengths) are compiled out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.attention_jvp.configs import case_of, forward_config, pad_width
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
    strides_of,
    tile,
    whole,
    wide,
)


@triton.jit
def finish(
    out, out_strides, tangent, tangent_strides, lse, maximum, normaliser, rho, o, t,
    line, batch, head, first, row_end,
    E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Normalise the accumulators of a block of queries and store output, tangent and log-sum-exp."""
    # the normaliser is 0 only for a fully masked row: all its accumulators are and stay zero
    divisor = tl.where(normaliser == 0, 1.0, normaliser)
    inverse = 1.0 / divisor
    o = o * inverse[:, None]
    store(out, out_strides, batch, head, o, first, row_end, BLOCK_M, BLOCK_E, E, DESCRIBED)
    if tangent is not None:
        t = t * inverse[:, None] - (rho * inverse)[:, None] * o
        store(tangent, tangent_strides, batch, head, t, first, row_end, BLOCK_M, BLOCK_E, E, DESCRIBED)
    total = (maximum + tl.log2(divisor)) / LOG2E
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(lse + line.to(tl.int64) * row_end + rows, total, mask=rows < row_end)


@triton.jit
def forward_kernel(
    q, q_strides, k, k_strides, v, v_strides, tq, tq_strides, tk, tk_strides, tv, tv_strides,
    mask, mask_strides, lengths, out, out_strides, tangent, tangent_strides, lse,
    heads, group, row_end, key_end, scale,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Compute a block of queries of one head with all its keys.

    q, tq [b, h, n, D]; k, tk [b, h / group, m, D]; v, tv [b, h / group, m, E]; lengths [b] or None; out and
    tangent [b, h, n, E]; lse float32 [b, h, n].
    """
    line, first = place_of(row_end, BLOCK_M)
    batch, head = line // heads, line % heads
    shared = head // group
    rows = first + tl.arange(0, BLOCK_M)
    if mask is not None:
        mask = place(mask, mask_strides, batch, head)
    qs = tile(q, q_strides, batch, head, first, row_end, BLOCK_M, BLOCK_D, D, False, WIDE, DESCRIBED)
    if tq is not None:
        tqs = tile(tq, tq_strides, batch, head, first, row_end, BLOCK_M, BLOCK_D, D, False, WIDE, DESCRIBED)

    end = keys_of(lengths, batch, key_end)
    last = tl.minimum(end, first + BLOCK_M) if CAUSAL else end
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    normaliser, rho = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    o, t = tl.zeros([BLOCK_M, BLOCK_E], tl.float32), tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for start in range(0, last, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        ks = tile(k, k_strides, batch, shared, start, end, BLOCK_N, BLOCK_D, D, WHOLE, WIDE, DESCRIBED)
        S = scores(qs, ks, mask, mask_strides, rows, columns, row_end, end, scale, CAUSAL, WHOLE, PRECISION)
        previous, maximum = maximum, tl.maximum(maximum, tl.max(S, 1))
        # -inf - -inf is nan: a row without a key so far uses the origin 0, where exp2(-inf) = 0
        origin = tl.where(maximum == float("-inf"), 0.0, maximum)
        P, decay = tl.exp2(S - origin[:, None]), tl.exp2(previous - origin)
        normaliser = decay * normaliser + tl.sum(P, 1)
        if tq is not None or tk is not None:
            dS = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if tq is not None:
                dS = tl.dot(tqs, tl.trans(ks), dS, input_precision=PRECISION)
            if tk is not None:
                tks = tile(
                    tk, tk_strides, batch, shared, start, end, BLOCK_N, BLOCK_D, D, WHOLE, WIDE, DESCRIBED
                )
                dS = tl.dot(qs, tl.trans(tks), dS, input_precision=PRECISION)
            H = P * (dS * scale)
            rho = decay * rho + tl.sum(H, 1)
        vs = tile(v, v_strides, batch, shared, start, end, BLOCK_N, BLOCK_E, E, WHOLE, WIDE, DESCRIBED)
        weights = P.to(vs.dtype)
        o = tl.dot(weights, vs, o * decay[:, None], input_precision=PRECISION)
        if tangent is not None:
            t = t * decay[:, None]
        if tq is not None or tk is not None:
            t = tl.dot(H.to(vs.dtype), vs, t, input_precision=PRECISION)
        if tv is not None:
            tvs = tile(tv, tv_strides, batch, shared, start, end, BLOCK_N, BLOCK_E, E, WHOLE, WIDE, DESCRIBED)
            t = tl.dot(weights, tvs, t, input_precision=PRECISION)

    finish(
        out, out_strides, tangent, tangent_strides, lse, maximum, normaliser, rho, o, t,
        line, batch, head, first, row_end, E, BLOCK_M, BLOCK_E, DESCRIBED,
    )  # fmt: skip


def forward(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, options: Options) -> Result:
    """Launch the kernel for inputs [b, h, n, d], [b, g, m, d], [b, g, m, e] of any strides, h a multiple of g."""
    batch, heads, rows, dim = q.shape
    shared, keys, width = k.shape[1], k.shape[2], v.shape[3]
    out = torch.empty_like(q) if width == dim else q.new_empty(batch, heads, rows, width)
    tangent = None if tangents.absent else torch.empty_like(out)
    lse = q.new_empty(batch, heads, rows, 1, dtype=torch.float32)
    mask, mask_strides = mask_of(options, (batch, heads, rows, keys))
    case = case_of(q, v, tangents, describable(options, (q, k, v, *tangents, out, tangent)))
    config = forward_config(case)
    qs, tqs, outs, moved = (source(x, config.block_m, case.described) for x in (q, tangents.q, out, tangent))
    ks, tks, vs, tvs = (source(x, config.block_n, case.described) for x in (k, tangents.k, v, tangents.v))
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        forward_kernel[(triton.cdiv(rows, config.block_m) * batch * heads,)](
            qs, q.stride(), ks, k.stride(), vs, v.stride(),
            tqs, strides_of(tangents.q), tks, strides_of(tangents.k), tvs, strides_of(tangents.v),
            mask, mask_strides, options.lengths, outs, out.stride(), moved, strides_of(tangent), lse,
            heads, heads // shared, rows, keys, options.scale,
            D=dim, E=width, BLOCK_D=pad_width(dim), BLOCK_E=pad_width(width),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            CAUSAL=options.causal, WHOLE=whole(options, keys, config), PRECISION=precision_of(q), WIDE=wide(q),
            DESCRIBED=case.described, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return Result(out, tangent, lse)
