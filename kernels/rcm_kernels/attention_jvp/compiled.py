"""The Triton launches as custom operators for torch.compile, which cannot trace the launches themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_kernels.attention_jvp import backward as triton_backward
from rcm_kernels.attention_jvp import forward as triton_forward
from rcm_kernels.attention_jvp.problem import Options, Result, Tangents


@torch.library.custom_op(
    "rcm_kernels::attention_jvp",
    mutates_args=(),
    schema=(
        "(Tensor q, Tensor k, Tensor v, Tensor? tq, Tensor? tk, Tensor? tv, Tensor? mask, Tensor? lengths,"
        " float scale, bool causal) -> (Tensor, Tensor, Tensor)"
    ),
)
def forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, tangent (empty without tangents) and log-sum-exp."""
    result = triton_forward.forward(q, k, v, Tangents(tq, tk, tv), Options(mask, scale, causal, lengths))
    return result.out, q.new_empty(0) if result.tangent is None else result.tangent, result.lse


@forward_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    out = torch.empty_like(q) if v.shape[3] == q.shape[3] else q.new_empty(*q.shape[:3], v.shape[3])
    tangent = torch.empty_like(out) if any(x is not None for x in others[:3]) else q.new_empty(0)
    return out, tangent, q.new_empty(*q.shape[:3], 1, dtype=torch.float32)


@torch.library.custom_op(
    "rcm_kernels::attention_jvp_backward",
    mutates_args=(),
    schema=(
        "(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor gradient, Tensor? mask, Tensor? lengths,"
        " float scale, bool causal) -> (Tensor, Tensor, Tensor)"
    ),
)
def backward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    gradient: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v."""
    saved = Result(out, None, lse)
    return triton_backward.backward(q, k, v, saved, gradient, Options(mask, scale, causal, lengths))


@backward_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def forward(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, options: Options) -> Result:
    """Run ``forward.forward`` inside a compiled graph."""
    mask, scale, causal, lengths = options
    out, tangent, lse = forward_op(q, k, v, *tangents, mask, lengths, scale, causal)
    return Result(out, None if tangents.absent else tangent, lse)


def backward(
    q: Tensor, k: Tensor, v: Tensor, result: Result, gradient: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``backward.backward`` inside a compiled graph."""
    mask, scale, causal, lengths = options
    gradients: tuple[Tensor, Tensor, Tensor] = backward_op(
        q, k, v, result.out, result.lse, gradient, mask, lengths, scale, causal
    )
    return gradients
