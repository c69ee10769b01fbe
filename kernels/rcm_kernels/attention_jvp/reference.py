"""The definition: the whole score matrix, an explicit softmax, and a literal E31."""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_kernels.attention_jvp.problem import Options, Result, Tangents, score_tangent, scores


def forward(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, options: Options) -> Result:
    """Compute the result for inputs [b, h, n, d], [b, h, m, d] in the accumulation dtype; memory grows with n m."""
    S = scores(q, k, options)
    lse = S.logsumexp(-1, keepdim=True)
    # a fully masked row has lse = -inf; its probabilities are zero, not nan
    P = torch.where(lse == -torch.inf, torch.zeros_like(S), (S - lse).exp())
    out = P @ v
    if tangents.absent:
        return Result(out, None, lse)
    tangent = torch.zeros_like(out)
    dS = score_tangent(q, k, tangents, options.scale)
    if dS is not None:
        H = P * dS
        tangent = H @ v - H.sum(-1, keepdim=True) * out
    if tangents.v is not None:
        tangent = tangent + P @ tangents.v
    return Result(out, tangent, lse)
