"""What the Triton kernels share: reading tiles, masked scores, and how a launch is put together."""

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
    """Where matrix (batch, head) begins."""
    return base + batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]


@triton.jit
def place_of(end, ROWS: tl.constexpr):
    """Which matrix of a batch of heads this program is for, and its first row; neighbours share a matrix.

    One dimension of programs: the others end at 65,535.
    """
    tiles = tl.cdiv(end, ROWS)
    return tl.program_id(0) // tiles, tl.program_id(0) % tiles * ROWS


@triton.jit
def cells(matrices, strides, batch, head, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to ROWS rows from ``first`` on of matrix (batch, head), and the numbers of their rows and columns."""
    rows, columns = first + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    base = place(matrices, strides, batch, head)
    return base + rows.to(tl.int64) * strides[2] + columns.to(tl.int64) * strides[3], rows, columns


@triton.jit
def tile(
    matrices, strides, batch, head, first, end,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``first`` + ROWS of matrix (batch, head), zero from row ``end`` and column WIDTH on.

    ``matrices``: the first element of [b, h, n, WIDTH], or if DESCRIBED its tensor descriptor, of blocks [1, 1, ROWS,
    COLUMNS] and with ``end`` its own. WHOLE: every row is known to be below ``end``. WIDE: in float32, for the
    interpreter multiplies bfloat16 wrongly.
    """
    if DESCRIBED:
        found = tl.reshape(matrices.load([batch, head, first, 0]), [ROWS, COLUMNS])
    else:
        where, rows, columns = cells(matrices, strides, batch, head, first, ROWS, COLUMNS)
        if WHOLE and COLUMNS == WIDTH:
            found = tl.load(where)
        elif WHOLE:
            found = tl.load(where, mask=columns < WIDTH, other=0.0)
        elif COLUMNS == WIDTH:
            found = tl.load(where, mask=rows < end, other=0.0)
        else:
            found = tl.load(where, mask=(rows < end) & (columns < WIDTH), other=0.0)
    return found.to(tl.float32) if WIDE else found


@triton.jit
def store(
    matrices, strides, batch, head, value, first, end,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Writes ``value`` [ROWS, COLUMNS] where ``tile`` would read it, in the dtype of the matrices."""
    if DESCRIBED:
        block = tl.reshape(value.to(matrices.dtype), [1, 1, ROWS, COLUMNS])
        matrices.store([batch, head, first, 0], block)
    else:
        where, rows, columns = cells(matrices, strides, batch, head, first, ROWS, COLUMNS)
        tl.store(where, value.to(matrices.dtype.element_ty), mask=(rows < end) & (columns < WIDTH))


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
        where = (
            mask
            + rows[:, None].to(tl.int64) * mask_strides[2]
            + columns[None, :].to(tl.int64) * mask_strides[3]
        )
        inside = (rows[:, None] < row_end) & (columns[None, :] < column_end)
        given = tl.load(where, mask=inside, other=0)
        if given.dtype == tl.uint8:
            S = tl.where(given != 0, S, float("-inf"))
        else:
            S += given.to(tl.float32) * LOG2E
    return S


def mask_of(options: Options, shape: Sequence[int]) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask as a kernel reads it, and its strides over [b, h, n, m]; broadcast without a copy."""
    if options.mask is None:
        return None, (0, 0, 0, 0)
    mask = options.mask.view(torch.uint8) if options.mask.dtype == torch.bool else options.mask
    return mask, mask.expand(*shape).stride()


def describable(options: Options, tensors: Iterable[Tensor | None]) -> bool:
    """Whether the hardware that copies whole tiles can read ``tensors``: 16-byte rows and strides, no broadcast.

    Not for sequences of several lengths: what lies behind their ends may be anything, and a tile is copied whole. Not
    with a mask: its tiles need the shared memory that the larger tiles of descriptors fill.
    """
    if options.lengths is not None or options.mask is not None:
        return False
    return all(_describable(x) for x in tensors if x is not None)


def _describable(x: Tensor) -> bool:
    spans = zip(x.shape[:-1], x.stride()[:-1])
    aligned = all(stride * x.itemsize % 16 == 0 and (stride > 0 or size == 1) for size, stride in spans)
    return aligned and x.stride(-1) == 1 and x.data_ptr() % 16 == 0


def source(x: Tensor | None, rows: int, described: bool) -> Tensor | TensorDescriptor | None:
    """``x`` [b, h, n, d] in the form that ``tile`` reads, ``rows`` at a time."""
    if x is None or not described:
        return x
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, pad_width(x.shape[-1])])


def strides_of(x: Tensor | None) -> tuple[int, ...]:
    """Strides over [b, h, n, d]; zeros for what is absent."""
    return (0, 0, 0, 0) if x is None else x.stride()


def precision_of(x: Tensor) -> str:
    """float32 products are real float32 products, unless torch was told that TF32 will do."""
    if x.dtype != torch.float32 or not x.is_cuda:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def whole(options: Options, keys: int, config: Config) -> bool:
    """Whether every tile of keys is full, so that none needs a mask for its end."""
    return options.lengths is None and keys % config.block_n == 0


def wide(x: Tensor) -> bool:
    """Whether tiles of ``x`` are widened to float32 before they are multiplied."""
    return bool(triton_interprets()) and x.dtype == torch.bfloat16
