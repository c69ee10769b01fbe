"""Inputs, options and results of every backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tangents(NamedTuple):
    """Tangents of query, key and value; None means zero and costs nothing."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None

    @property
    def absent(self) -> bool:
        return self.q is None and self.k is None and self.v is None


class Options(NamedTuple):
    """Mask, additive or boolean (True = attend), broadcastable to [b, h, n, m]; scale of the scores; key lengths of
    the b sequences, int [b].
    """

    mask: Tensor | None
    scale: float
    causal: bool
    lengths: Tensor | None = None

    def repeat(self, times: int) -> Options:
        """Return the options for ``times`` concatenated batches."""
        mask, lengths = self.mask, self.lengths
        if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
            mask = mask.repeat(times, 1, 1, 1)
        return self._replace(mask=mask, lengths=None if lengths is None else lengths.repeat(times))


class Result(NamedTuple):
    """Output [b, h, n, d] and tangent in the accumulation dtype; log-sum-exp of the scores [b, h, n, 1]."""

    out: Tensor
    tangent: Tensor | None
    lse: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def scores(q: Tensor, k: Tensor, options: Options, first: int = 0) -> Tensor:
    """Return masked, scaled scores of all queries and the keys ``first``, ``first + 1``, ... in ``k`` [b, h, j, d]."""
    S = options.scale * (q @ k.mT)
    columns = slice(first, first + k.shape[-2])
    if options.mask is not None:
        mask = options.mask if options.mask.shape[-1] == 1 else options.mask[..., columns]
        S = S.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else S + mask.to(S.dtype)
    if not options.causal and options.lengths is None:
        return S
    column = torch.arange(first, first + k.shape[-2], device=q.device)
    if options.causal:
        row = torch.arange(q.shape[-2], device=q.device)[:, None]
        S = S.masked_fill(column > row, -torch.inf)
    if options.lengths is not None:
        S = S.masked_fill(column >= options.lengths[:, None, None, None], -torch.inf)
    return S


def score_tangent(q: Tensor, k: Tensor, tangents: Tangents, scale: float) -> Tensor | None:
    """Return scale (dQ K^T + Q dK^T), None without tangents of q and k; a mask is constant and does not appear."""
    parts = []
    if tangents.q is not None:
        parts.append(tangents.q @ k.mT)
    if tangents.k is not None:
        parts.append(q @ tangents.k.mT)
    if not parts:
        return None
    return scale * (parts[0] if len(parts) == 1 else parts[0] + parts[1])
