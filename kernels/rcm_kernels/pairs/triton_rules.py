"""Triton kernels: value and tangent of a row in one pass over memory. Absent inputs are compiled out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.pairs.reference import Modulation, Pair

BLOCK = 1024
"""Number of elements in a block of a pointwise kernel."""


@triton.jit
def norm_kernel(
    x, tx, weight, bias, scale, tscale, shift, tshift, y, ty, per, width, eps,
    KIND: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Normalise one row [width] of x; modulation row = row / per."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    at, turn = row * width + column, row // per * width + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if KIND == "layer":
        value = tl.where(inside, value - tl.sum(value) / width, 0.0)
    r = tl.rsqrt(tl.sum(value * value) / width + eps)
    n = value * r
    gain = tl.zeros([WIDTH], tl.float32) + 1.0
    if weight is not None:
        gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    moved = tl.zeros([WIDTH], tl.float32)
    if tx is not None:
        dx = tl.load(tx + at, mask=inside, other=0.0).to(tl.float32)
        along = tl.sum(n * dx) / width
        if KIND == "layer":
            dx = dx - tl.sum(dx) / width
        moved = gain * (r * (dx - n * along))
    n = n * gain
    if bias is not None:
        n += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    out = n
    if scale is not None:
        factor = 1.0 + tl.load(scale + turn, mask=inside, other=0.0).to(tl.float32)
        out = n * factor
        moved = moved * factor
    if tscale is not None:
        moved += tl.load(tscale + turn, mask=inside, other=0.0).to(tl.float32) * n
    if shift is not None:
        out += tl.load(shift + turn, mask=inside, other=0.0).to(tl.float32)
    if tshift is not None:
        moved += tl.load(tshift + turn, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)
    if ty is not None:
        tl.store(ty + at, moved.to(ty.dtype.element_ty), mask=inside)


@triton.jit
def residual_kernel(x, tx, h, th, gate, tgate, y, ty, per, width, WIDTH: tl.constexpr):
    """Compute a block of a row [width] of x and h; gate row = row / per."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < width
    at, turn = row * width + column, row // per * width + column
    other = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(gate + turn, mask=inside, other=0.0).to(tl.float32)
    out = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + factor * other
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)
    if ty is not None:
        moved = tl.zeros([WIDTH], tl.float32)
        if tx is not None:
            moved += tl.load(tx + at, mask=inside, other=0.0).to(tl.float32)
        if th is not None:
            moved += factor * tl.load(th + at, mask=inside, other=0.0).to(tl.float32)
        if tgate is not None:
            moved += other * tl.load(tgate + turn, mask=inside, other=0.0).to(tl.float32)
        tl.store(ty + at, moved.to(ty.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid(x):
    """Return the sigmoid; inputs below -80, where it is 2e-35, are clamped because exp would overflow."""
    return 1.0 / (1.0 + tl.exp(-tl.maximum(x, -80.0)))


@triton.jit
def activate(x, KIND: tl.constexpr):
    """Return value and derivative."""
    if KIND == "gelu":
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope = share + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif KIND == "gelu_tanh":
        z = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        share = sigmoid(z)
        slope = share + x * share * sigmoid(-z) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    else:
        share = sigmoid(x)
        slope = share * (1.0 + x * sigmoid(-x))  # 1 - share would cancel
    return x * share, slope


@triton.jit
def activation_kernel(a, ta, b, tb, y, ty, size, KIND: tl.constexpr, WIDTH: tl.constexpr):
    """Compute WIDTH consecutive elements, independent of rows."""
    at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = at < size
    value, slope = activate(tl.load(a + at, mask=inside, other=0.0).to(tl.float32), KIND)
    moved = tl.zeros([WIDTH], tl.float32)
    if ta is not None:
        moved = slope * tl.load(ta + at, mask=inside, other=0.0).to(tl.float32)
    out = value
    if b is not None:
        other = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
        out = value * other
        moved = moved * other
        if tb is not None:
            moved += value * tl.load(tb + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)
    if ty is not None:
        tl.store(ty + at, moved.to(ty.dtype.element_ty), mask=inside)


@triton.jit
def turn_pairs(x, y, at, inside, c, s):
    """Write to y the rotated pairs of x at ``at`` and ``at`` + 1."""
    even = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(x + at + 1, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, (even * c - odd * s).to(y.dtype.element_ty), mask=inside)
    tl.store(y + at + 1, (even * s + odd * c).to(y.dtype.element_ty), mask=inside)


@triton.jit
def rotary_kernel(x, tx, cos, sin, y, ty, tokens, pairs, half, WIDTH: tl.constexpr):
    """Rotate a block of a token's ``pairs`` of channels, ``half`` of them per head; cos, sin [tokens, half]."""
    row = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = pair < pairs
    angle = row % tokens * half + pair % half
    c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    at = row * pairs * 2 + pair * 2
    turn_pairs(x, y, at, inside, c, s)
    if tx is not None:
        turn_pairs(tx, ty, at, inside, c, s)


def modulated_norm(x: Tensor, tx: Tensor | None, kind: str, by: Modulation, eps: float) -> Pair:
    """Launch one program per row."""
    per, (scale, tscale, shift, tshift) = _modulation(x, by[2:])
    moving = any(v is not None for v in (tx, tscale, tshift))
    x, tx = x.contiguous(), _dense(tx)
    y, ty = torch.empty_like(x), torch.empty_like(x) if moving else None
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        norm_kernel[(x.numel() // width,)](
            x, tx, _dense(by.weight), _dense(by.bias), scale, tscale, shift, tshift, y, ty, per, width, eps,
            KIND=kind, WIDTH=block, num_warps=min(16, max(1, block // 256)),
        )  # fmt: skip
    return y, ty


def gated_residual(
    x: Tensor, tx: Tensor | None, h: Tensor, th: Tensor | None, gate: Tensor, tgate: Tensor | None
) -> Pair:
    """Launch one program per row and BLOCK channels."""
    moving = any(v is not None for v in (tx, th, tgate))
    per, (gate_rows, tgate) = _modulation(x, (gate, tgate))
    x = x.contiguous()
    y, ty = torch.empty_like(x), torch.empty_like(x) if moving else None
    width = x.shape[-1]
    grid = (x.numel() // width, triton.cdiv(width, BLOCK))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        residual_kernel[grid](
            x, _dense(tx), h.contiguous(), _dense(th), gate_rows, tgate, y, ty, per, width, WIDTH=BLOCK
        )
    return y, ty


def gated_activation(a: Tensor, ta: Tensor | None, b: Tensor | None, tb: Tensor | None, kind: str) -> Pair:
    """Launch one program per BLOCK elements."""
    a = a.contiguous()
    y = torch.empty_like(a)
    ty = torch.empty_like(a) if ta is not None or tb is not None else None
    with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
        activation_kernel[(triton.cdiv(a.numel(), BLOCK),)](
            a, _dense(ta), _dense(b), _dense(tb), y, ty, a.numel(), KIND=kind, WIDTH=BLOCK
        )
    return y, ty


def rotary(x: Tensor, tx: Tensor | None, cos: Tensor, sin: Tensor) -> Pair:
    """Launch one program per token and BLOCK / 2 pairs."""
    batch, tokens, heads, dim = x.shape
    x = x.contiguous()
    y, ty = torch.empty_like(x), None if tx is None else torch.empty_like(x)
    pairs = heads * dim // 2
    grid = (batch * tokens, triton.cdiv(pairs, BLOCK // 2))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        rotary_kernel[grid](
            x,
            _dense(tx),
            cos.contiguous(),
            sin.contiguous(),
            y,
            ty,
            tokens,
            pairs,
            dim // 2,
            WIDTH=BLOCK // 2,
        )
    return y, ty


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _modulation(x: Tensor, turns: tuple[Tensor | None, ...]) -> tuple[int, tuple[Tensor | None, ...]]:
    """Return how many rows of x [..., n, c] share a row of the modulations, and the modulations as such rows.

    One row for all, per sample or per token needs no copy.
    """
    rows = x.numel() // x.shape[-1]
    counts = {v.numel() // x.shape[-1] for v in turns if v is not None}
    whole = (*x.shape[:-2], 1, x.shape[-1])
    if counts <= {1}:
        return rows, tuple(_dense(v) for v in turns)
    if all(v is None or v.expand(*x.shape).stride(-2) == 0 for v in turns):
        return x.shape[-2], tuple(None if v is None else v.expand(whole).contiguous() for v in turns)
    return 1, tuple(None if v is None else v.expand(x.shape).contiguous() for v in turns)
