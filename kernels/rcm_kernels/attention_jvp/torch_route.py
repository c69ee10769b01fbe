"""Forward and backward of the plain-torch implementations, with casts and the repetition of shared heads."""

from __future__ import annotations

from torch import Tensor

from rcm_kernels.attention_jvp import chunked, reference
from rcm_kernels.attention_jvp.problem import Options, Result, Tangents, accumulation_dtype

FORWARD = {"reference": reference.forward, "chunked": chunked.forward}


def forward(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, options: Options, backend: str) -> Result:
    """Compute in the accumulation dtype; return output and tangent in the dtype of ``q``."""
    group = q.shape[1] // k.shape[1]
    moved = Tangents(*[None if x is None else _wide(x, n) for x, n in zip(tangents, (1, group, group))])
    result = FORWARD[backend](_wide(q), _wide(k, group), _wide(v, group), moved, options)
    tangent = None if result.tangent is None else result.tangent.to(q.dtype)
    return Result(result.out.to(q.dtype), tangent, result.lse)


def backward(
    q: Tensor, k: Tensor, v: Tensor, result: Result, gradient: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v by the streaming form, for the ``result`` of any backend."""
    group = q.shape[1] // k.shape[1]
    saved = Result(_wide(result.out), None, result.lse)
    dq, dk, dv = chunked.backward(_wide(q), _wide(k, group), _wide(v, group), saved, _wide(gradient), options)
    if group > 1:
        dk, dv = (x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2) for x in (dk, dv))
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


def _wide(x: Tensor, group: int = 1) -> Tensor:
    """Convert ``x`` to the accumulation dtype and repeat every head ``group`` times."""
    x = x.to(accumulation_dtype(x.dtype))
    return x if group == 1 else x.repeat_interleave(group, 1)
