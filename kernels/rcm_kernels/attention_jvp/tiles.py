"""What the Triton kernels share: reading tiles, masked scores, and how a launch is put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.attention_jvp.problem import Options

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 before the first import of triton)."""


LOG2E = tl.constexpr(1.4426950408889634)


class Config(NamedTuple):
    """Rows and keys of a tile, and how Triton compiles it."""

    block_m: int
    block_n: int
    warps: int
    stages: int


@triton.jit
def place(base, strides, batch, head):
    """Where matrix (batch, head) begins."""
    return base + batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]


@triton.jit
def tile(
    base, rows, row_stride, row_end, columns, column_stride,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """[rows, columns] of a matrix, zero where a row is not below ``row_end`` or a column not below WIDTH.

    WHOLE: every row is known to be below. WIDE: in float32, for the interpreter multiplies bfloat16 wrongly.
    """
    where = base + rows[:, None].to(tl.int64) * row_stride + columns[None, :] * column_stride
    if WHOLE and columns.shape[0] == WIDTH:
        found = tl.load(where)
    elif WHOLE:
        found = tl.load(where, mask=columns[None, :] < WIDTH, other=0.0)
    elif columns.shape[0] == WIDTH:
        found = tl.load(where, mask=rows[:, None] < row_end, other=0.0)
    else:
        found = tl.load(where, mask=(rows[:, None] < row_end) & (columns[None, :] < WIDTH), other=0.0)
    return found.to(tl.float32) if WIDE else found


@triton.jit
def store(base, value, rows, row_stride, row_end, columns, column_stride, WIDTH: tl.constexpr):
    """Writes ``value`` [rows, columns] where ``tile`` would read it, in the dtype of the matrix."""
    where = base + rows[:, None].to(tl.int64) * row_stride + columns[None, :] * column_stride
    inside = (rows[:, None] < row_end) & (columns[None, :] < WIDTH)
    tl.store(where, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def keys_of(lengths, batch, key_end):
    """How many keys of sequence ``batch`` count; ``lengths`` is None or [b]."""
    end = key_end
    if lengths is not None:
        end = tl.minimum(end, tl.load(lengths + batch).to(tl.int32))
    return end


@triton.jit
def scores(
    q, k, mask, mask_strides, rows, columns, row_end, column_end, scale,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scaled scores in units of log 2; -inf where a row may not attend.

    ``mask``: None, or the first element of an additive or boolean (uint8) mask [n, m] of this batch and head.
    WHOLE: every column is known to be below ``column_end``.
    """
    S = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    if not WHOLE:
        S = tl.where((columns < column_end)[None, :], S, float("-inf"))
    if CAUSAL:
        S = tl.where(columns[None, :] <= rows[:, None], S, float("-inf"))
    if mask is not None:
        where = mask + rows[:, None].to(tl.int64) * mask_strides[2] + columns[None, :] * mask_strides[3]
        inside = (rows[:, None] < row_end) & (columns[None, :] < column_end)
        given = tl.load(where, mask=inside, other=0)
        if given.dtype == tl.uint8:
            S = tl.where(given != 0, S, float("-inf"))
        else:
            S += given.to(tl.float32) * LOG2E
    return S


def padded(width: int) -> int:
    """The power of two, 16 or more, that holds ``width`` columns."""
    return max(16, 1 << (width - 1).bit_length())


def mask_of(options: Options, shape: Sequence[int]) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask as a kernel reads it, and its strides over [b, h, n, m]; broadcast without a copy."""
    if options.mask is None:
        return None, (0, 0, 0, 0)
    mask = options.mask.view(torch.uint8) if options.mask.dtype == torch.bool else options.mask
    return mask, mask.expand(*shape).stride()


def strides_of(x: Tensor | None) -> tuple[int, ...]:
    """Strides over [b, h, n, d]; zeros for what is absent."""
    return (0, 0, 0, 0) if x is None else x.stride()


def precision_of(x: Tensor) -> str:
    """float32 products are real float32 products, unless torch was told that TF32 will do."""
    return "tf32" if x.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def whole(options: Options, keys: int, config: Config) -> bool:
    """Whether every tile of keys is full, so that none needs a mask for its end."""
    return options.lengths is None and keys % config.block_n == 0


def wide(x: Tensor) -> bool:
    """Whether tiles of ``x`` are widened to float32 before they are multiplied."""
    return INTERPRETED and x.dtype == torch.bfloat16
