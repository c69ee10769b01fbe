"""Losses between two predictions: discrete-time consistency, distillation by regression."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PairLoss = Literal["l2", "huber"]
PairKind = PairLoss | Literal["norm"]


def pair_loss(prediction: Tensor, target: Tensor, kind: PairKind, c: float) -> Tensor:
    """``[B]``: "l2" |d|^2, "norm" |d|, pseudo-"huber" sqrt(|d|^2 + c^2) - c; d = prediction - sg[target] (E41).

    The gradient of the norm is zero at d = 0.

    Source: Song and Dhariwal, arXiv 2310.14189, section 3.3 (Huber); LCM, arXiv 2310.04378.
    """
    difference = (prediction - target.detach()).flatten(1)
    if kind == "norm":
        norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norm
    square = difference.square().sum(1)
    return square if kind == "l2" else (square + c * c).sqrt() - c
