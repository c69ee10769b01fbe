"""Masking of non-finite samples: they are counted and excluded from the loss, never repaired."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_mask(*tensors: Tensor) -> Tensor:
    """Return ``[B]`` booleans: True if every element of the sample is finite in all ``tensors`` [B, ...]."""
    masks = [tensor.isfinite().flatten(1).all(1) for tensor in tensors]
    return torch.stack(masks).all(0)


def keep_rows(mask: Tensor, x: Tensor) -> Tensor:
    """Return ``x`` [B, ...] with zeros in the rows where ``mask`` [B] is False.

    These rows stay in the batch as zeros, so that every rank makes the same network calls, but do not enter the loss.
    A gradient of zero times nan, which is nan, cannot occur.
    """
    return torch.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, torch.zeros_like(x))


def mean_over(mask: Tensor, loss: Tensor) -> Tensor:
    """Return the mean of ``loss`` [B] over the rows of ``mask``; zero, with zero gradient, if all are masked."""
    return loss[mask].sum() / mask.sum().clamp(min=1)
