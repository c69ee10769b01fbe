"""Discrete-time consistency: a prediction is drawn to one made nearer to the data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import predict_x0
from rcm_core.losses.finite import finite_mask, keep_rows, mean_over
from rcm_core.losses.pairs import PairKind, pair_loss
from rcm_core.protocols import Condition, Nets
from rcm_core.terms import Term, left_out


class Pair(NamedTuple):
    """A state ``x`` at angles ``t`` [B], and ``near`` at smaller angles ``s`` [B] on the same path."""

    x: Tensor
    t: Tensor
    near: Tensor
    s: Tensor


def pair_term(
    nets: Nets,
    pair: Pair,
    condition: Condition,
    loss: tuple[PairKind, float],
    target: str = "student",
    weight: Tensor | None = None,
) -> Term:
    """``loss`` (its kind and c, E41) of the student's f(x, t) to sg[f(near, s)] of the network ``target``, each sample
    times ``weight`` [B].
    """
    with torch.no_grad():
        end = predict_x0(pair.near, pair.s, nets[target](pair.near, pair.s, condition))
        finite = finite_mask(end)
    found = predict_x0(pair.x, pair.t, nets["student"](keep_rows(finite, pair.x), pair.t, condition))
    each = pair_loss(keep_rows(finite, found), keep_rows(finite, end), *loss)
    if weight is not None:
        each = each * weight.to(each.dtype)
    return Term(mean_over(finite, each), {"nonfinite": left_out(finite)})
