"""The streaming form (E32) in plain torch: memory grows linearly with the length.

It keeps the running maximum m, the normaliser l, the output, one tangent accumulator for both P dV and H V, and the
row sum rho of H; all are rescaled when the maximum changes. The gradient of the primal uses the same blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_kernels.attention_jvp.problem import Options, Result, Tangents, score_tangent, scores

BLOCK = 256
"""Number of keys per block."""


def forward(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, options: Options) -> Result:
    """Compute the result for inputs [b, h, n, d], [b, h, m, d] in the accumulation dtype."""
    maximum = q.new_full((*q.shape[:-1], 1), -torch.inf)
    normaliser, rho = torch.zeros_like(maximum), torch.zeros_like(maximum)
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    tangent = None if tangents.absent else torch.zeros_like(out)
    for first in range(0, k.shape[-2], BLOCK):
        block = slice(first, first + BLOCK)
        kb, vb = k[..., block, :], v[..., block, :]
        S = scores(q, kb, options, first)
        previous, maximum = maximum, torch.maximum(maximum, S.amax(-1, keepdim=True))
        # -inf - -inf is nan: a row without a key so far uses the origin 0, where exp(-inf) = 0
        origin = maximum.masked_fill(maximum == -torch.inf, 0)
        P, decay = (S - origin).exp(), (previous - origin).exp()
        normaliser = decay * normaliser + P.sum(-1, keepdim=True)
        out = decay * out + P @ vb
        if tangent is None:
            continue
        moved = Tangents(tangents.q, _block(tangents.k, block), _block(tangents.v, block))
        tangent = decay * tangent
        rho = decay * rho
        dS = score_tangent(q, kb, moved, options.scale)
        if dS is not None:
            H = P * dS
            tangent, rho = tangent + H @ vb, rho + H.sum(-1, keepdim=True)
        if moved.v is not None:
            tangent = tangent + P @ moved.v
    # l = 0 only for a fully masked row: all its accumulators are and stay zero
    inverse = 1 / normaliser.masked_fill(normaliser == 0, 1)
    out = out * inverse
    if tangent is not None:
        tangent = tangent * inverse - rho * inverse * out
    return Result(out, tangent, maximum + normaliser.log())


def backward(
    q: Tensor, k: Tensor, v: Tensor, result: Result, gradient: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of q, k, v for ``gradient`` of the output, from the saved output and log-sum-exp."""
    dq, dk, dv = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
    lse = result.lse.masked_fill(result.lse == -torch.inf, torch.inf)
    delta = (gradient * result.out).sum(-1, keepdim=True)
    for first in range(0, k.shape[-2], BLOCK):
        block = slice(first, first + BLOCK)
        kb, vb = k[..., block, :], v[..., block, :]
        P = (scores(q, kb, options, first) - lse).exp()
        dS = options.scale * P * (gradient @ vb.mT - delta)
        dq = dq + dS @ kb
        dk[..., block, :] = dS.mT @ q
        dv[..., block, :] = P.mT @ gradient
    return dq, dk, dv


def _block(x: Tensor | None, block: slice) -> Tensor | None:
    return None if x is None else x[..., block, :]
