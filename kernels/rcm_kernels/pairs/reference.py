"""The definitions in plain torch, any float dtype: each value with its derivative; a tangent of None is zero.

They compute in ``accumulation_dtype`` and round once, as the kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rcm_kernels.attention_jvp.problem import accumulation_dtype

Pair = tuple[Tensor, Tensor | None]


class Modulation(NamedTuple):
    """Modulation of a normalised n: ``(weight n + bias) (1 + scale) + shift``; scale and shift have tangents."""

    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    tscale: Tensor | None
    shift: Tensor | None
    tshift: Tensor | None


def modulated_norm(x: Tensor, tx: Tensor | None, kind: str, by: Modulation, eps: float) -> Pair:
    """Return the adaptive normalisation and its tangent (E33)."""
    wide, moved, scale, tscale, shift, tshift = (_wide(v) for v in (x, tx, *by[2:]))
    assert wide is not None
    centred = wide - wide.mean(-1, keepdim=True) if kind == "layer" else wide
    r = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    n = centred * r
    dn = None
    if moved is not None:
        part = moved - moved.mean(-1, keepdim=True) if kind == "layer" else moved
        dn = r * (part - n * (n * moved).mean(-1, keepdim=True))
    if by.weight is not None:
        n, dn = n * by.weight.to(n.dtype), _times(dn, by.weight.to(n.dtype))
    if by.bias is not None:
        n = n + by.bias.to(n.dtype)
    y, dy = n, dn
    if scale is not None:
        y, dy = n * (1 + scale), _sum(_times(dn, 1 + scale), _times(tscale, n))
    if shift is not None:
        y, dy = y + shift, _sum(dy, tshift)
    return _round(y, dy, x)


def gated_residual(
    x: Tensor, tx: Tensor | None, h: Tensor, th: Tensor | None, gate: Tensor, tgate: Tensor | None
) -> Pair:
    """Return ``x + gate h`` and ``dx + dgate h + gate dh`` (E34)."""
    wide = [_wide(v) for v in (x, tx, h, th, gate, tgate)]
    a, ta, b, tb, g, tg = wide
    assert a is not None
    assert b is not None
    assert g is not None
    return _round(a + g * b, _sum(ta, _sum(_times(tb, g), _times(tg, b))), x)


def gated_activation(a: Tensor, ta: Tensor | None, b: Tensor | None, tb: Tensor | None, kind: str) -> Pair:
    """Return ``act(a) b`` and ``act'(a) da b + act(a) db`` (E34); without ``b`` only the activation."""
    wide, moved, other, tother = (_wide(v) for v in (a, ta, b, tb))
    assert wide is not None
    value, slope = ACTIVATIONS[kind](wide)
    y, dy = value, _times(moved, slope)
    if other is not None:
        y, dy = value * other, _sum(_times(dy, other), _times(tother, value))
    return _round(y, dy, a)


def rotary(x: Tensor, tx: Tensor | None, cos: Tensor, sin: Tensor) -> Pair:
    """Rotate each pair of neighbouring channels, and its tangent, by its angle."""

    def rotate_pairs(v: Tensor) -> Tensor:
        even, odd = v[..., ::2], v[..., 1::2]
        c, s = (w.to(v.dtype)[:, None] for w in (cos, sin))
        return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)

    wide, moved = _wide(x), _wide(tx)
    assert wide is not None
    return _round(rotate_pairs(wide), None if moved is None else rotate_pairs(moved), x)


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    share = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * share, share + x * (-0.5 * x * x).exp() / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    k = math.sqrt(2 / math.pi)
    z = 2 * k * (x + 0.044715 * x**3)
    share, rest = torch.sigmoid(z), torch.sigmoid(-z)  # 1 - share would cancel
    return x * share, share + x * share * rest * 2 * k * (1 + 3 * 0.044715 * x * x)


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    share = torch.sigmoid(x)
    return x * share, share * (1 + x * torch.sigmoid(-x))


ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
}


def _wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(accumulation_dtype(x.dtype))


def _times(x: Tensor | None, factor: Tensor) -> Tensor | None:
    return None if x is None else x * factor


def _sum(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    if x is None or y is None:
        return y if x is None else x
    return x + y


def _round(y: Tensor, dy: Tensor | None, like: Tensor) -> Pair:
    return y.to(like.dtype), None if dy is None else dy.expand_as(y).to(like.dtype)
