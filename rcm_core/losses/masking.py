"""Samples that are not finite are counted and left out, never patched."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_mask(*tensors: Tensor) -> Tensor:
    """``[B]`` booleans: True where every element of the sample is finite in every one of ``tensors`` [B,
    ...].
    """
    masks = [tensor.isfinite().flatten(1).all(1) for tensor in tensors]
    return torch.stack(masks).all(0)


def keep_rows(mask: Tensor, x: Tensor) -> Tensor:
    """``x`` [B, ...] with zeros in the rows that ``mask`` [B] leaves out.

    The rows stay in the batch as an input of zeros, so that every rank makes the same network calls, and are
    absent from the loss; a gradient of zero times nan, which is nan, cannot arise.
    """
    return torch.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, torch.zeros_like(x))


def mean_over(mask: Tensor, loss: Tensor) -> Tensor:
    """Mean of ``loss`` [B] over the rows of ``mask``; zero, with a gradient of zero, if there are none."""
    return loss[mask].sum() / mask.sum().clamp(min=1)
