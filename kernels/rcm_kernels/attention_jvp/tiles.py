"""Shared parts of the Triton kernels: access to tiles, masked scores, arguments of a launch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rcm_kernels.attention_jvp.configs import Config, pad_width
from rcm_kernels.attention_jvp.problem import Options
from rcm_kernels.dispatch import triton_interprets

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def place(base, strides, batch, head):
    """Return the pointer to matrix (batch, head)."""
    return base + batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]


@triton.jit
def place_of(end, ROWS: tl.constexpr):
    """Return the index of this program's matrix in the batch of heads, and its first row; neighbours share a matrix.

    Programs have one dimension because the others are limited to 65,535.
    """
    tiles = tl.cdiv(end, ROWS)
    return tl.program_id(0) // tiles, tl.program_id(0) % tiles * ROWS


@triton.jit
def cells(matrices, strides, batch, head, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return pointers to ROWS rows of matrix (batch, head) from row ``first`` on, and their row and column indices."""
    rows, columns = first + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    base = place(matrices, strides, batch, head)
    return base + rows.to(tl.int64) * strides[2] + columns.to(tl.int64) * strides[3], rows, columns


@triton.jit
def tile(
    matrices, strides, batch, head, first, end,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Load rows ``first`` to ``first`` + ROWS of matrix (batch, head), zero from row ``end`` and column WIDTH on.

    ``matrices``: the first element of [b, h, n, WIDTH]; if DESCRIBED its tensor descriptor, with blocks [1, 1, ROWS,
    COLUMNS] and n = ``end``. WHOLE: every row is below ``end``. WIDE: convert to float32, because the interpreter
    multiplies bfloat16 incorrectly.
    """
    if DESCRIBED:
        values = tl.reshape(matrices.load([batch, head, first, 0]), [ROWS, COLUMNS])
    else:
        where, rows, columns = cells(matrices, strides, batch, head, first, ROWS, COLUMNS)
        if WHOLE and COLUMNS == WIDTH:
            values = tl.load(where)
        elif WHOLE:
            values = tl.load(where, mask=columns < WIDTH, other=0.0)
        elif COLUMNS == WIDTH:
            values = tl.load(where, mask=rows < end, other=0.0)
        else:
            values = tl.load(where, mask=(rows < end) & (columns < WIDTH), other=0.0)
    return values.to(tl.float32) if WIDE else values


@triton.jit
def store(
    matrices, strides, batch, head, value, first, end,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Store ``value`` [ROWS, COLUMNS] where ``tile`` would load it, in the dtype of the matrices."""
    if DESCRIBED:
        block = tl.reshape(value.to(matrices.dtype), [1, 1, ROWS, COLUMNS])
        matrices.store([batch, head, first, 0], block)
    else:
        where, rows, columns = cells(matrices, strides, batch, head, first, ROWS, COLUMNS)
        tl.store(where, value.to(matrices.dtype.element_ty), mask=(rows < end) & (columns < WIDTH))


@triton.jit
def keys_of(lengths, batch, key_end):
    """Return the number of valid keys of sequence ``batch``; ``lengths`` is None or [b]."""
    end = key_end
    if lengths is not None:
        end = tl.minimum(end, tl.load(lengths + batch).to(tl.int32))
    return end


@triton.jit
def scores(
    q, k, mask, mask_strides, rows, columns, row_end, column_end, scale,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return scaled scores in units of log 2; -inf where masked.

    ``mask``: None, or the first element of an additive or boolean (uint8) mask [n, m] of this batch and head.
    WHOLE: every column is below ``column_end``.
    """
    S = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    if not WHOLE:
        S = tl.where((columns < column_end)[None, :], S, float("-inf"))
    if CAUSAL:
        S = tl.where(columns[None, :] <= rows[:, None], S, float("-inf"))
    if mask is not None:
        where = (
            mask
            + rows[:, None].to(tl.int64) * mask_strides[2]
            + columns[None, :].to(tl.int64) * mask_strides[3]
        )
        inside = (rows[:, None] < row_end) & (columns[None, :] < column_end)
        bias = tl.load(where, mask=inside, other=0)
        if bias.dtype == tl.uint8:
            S = tl.where(bias != 0, S, float("-inf"))
        else:
            S += bias.to(tl.float32) * LOG2E
    return S


def mask_of(options: Options, shape: Sequence[int]) -> tuple[Tensor | None, tuple[int, ...]]:
    """Return the mask for the kernels and its strides over [b, h, n, m]; it is broadcast without a copy."""
    if options.mask is None:
        return None, (0, 0, 0, 0)
    mask = options.mask.view(torch.uint8) if options.mask.dtype == torch.bool else options.mask
    return mask, mask.expand(*shape).stride()


def describable(options: Options, tensors: Iterable[Tensor | None]) -> bool:
    """Return whether hardware copies of whole tiles support ``tensors``: 16-byte rows and strides, no broadcast.

    Key lengths exclude descriptors, because a tile is copied whole and data after a sequence's end may be anything. A
    mask excludes them, because its tiles need the shared memory that the larger tiles of descriptors fill.
    """
    if options.lengths is not None or options.mask is not None:
        return False
    return all(_describable(x) for x in tensors if x is not None)


def _describable(x: Tensor) -> bool:
    spans = zip(x.shape[:-1], x.stride()[:-1])
    aligned = all(stride * x.itemsize % 16 == 0 and (stride > 0 or size == 1) for size, stride in spans)
    return aligned and x.stride(-1) == 1 and x.data_ptr() % 16 == 0


def source(x: Tensor | None, rows: int, described: bool) -> Tensor | TensorDescriptor | None:
    """Return ``x`` [b, h, n, d] as ``tile`` reads it, ``rows`` at a time."""
    if x is None or not described:
        return x
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, pad_width(x.shape[-1])])


def strides_of(x: Tensor | None) -> tuple[int, ...]:
    """Return strides over [b, h, n, d]; zeros for None."""
    return (0, 0, 0, 0) if x is None else x.stride()


def precision_of(x: Tensor) -> str:
    """Return Triton's precision of products: float32 products are real float32 unless torch allows TF32."""
    if x.dtype != torch.float32 or not x.is_cuda:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def whole(options: Options, keys: int, config: Config) -> bool:
    """Return whether every tile of keys is full, so that none needs a mask for its end."""
    return options.lengths is None and keys % config.block_n == 0


def wide(x: Tensor) -> bool:
    """Return whether tiles of ``x`` are converted to float32 before they are multiplied."""
    return bool(triton_interprets()) and x.dtype == torch.bfloat16
