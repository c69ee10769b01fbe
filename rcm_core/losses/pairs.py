"""Losses that hold one prediction against another: discrete-time consistency, distillation by regression."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

PairLoss = Literal["l2", "huber"]


def pair_loss(prediction: Tensor, target: Tensor, kind: PairLoss, c: float) -> Tensor:
    """``[B]``: |d|^2, or the pseudo-Huber sqrt(|d|^2 + c^2) - c, of d = prediction - sg[target] (E41).

    Source: Song and Dhariwal, arXiv 2310.14189, section 3.3 (Huber); LCM, arXiv 2310.04378.
    """
    square = (prediction - target.detach()).square().flatten(1).sum(1)
    return square if kind == "l2" else (square + c * c).sqrt() - c
