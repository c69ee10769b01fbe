"""Adversarial losses of logits ``[B, heads, tokens]``: the mean over heads and tokens, per sample."""

from __future__ import annotations

import torch.nn.functional as nnf
from torch import Tensor


def hinge_student(fake: Tensor) -> Tensor:
    """``[B]``: - D(fake) (E37; SANA-Sprint, arXiv 2503.09641, eq. 9)."""
    return _over(-fake)


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``[B]``: half of relu(1 - D(real)) + relu(1 + D(fake)) (E38; the factor is the released code's)."""
    return 0.5 * (_over(nnf.relu(1 - real)) + _over(nnf.relu(1 + fake)))


def logistic_student(fake: Tensor) -> Tensor:
    """``[B]``: softplus(- D(fake)), the non-saturating loss (E39; DMD2, arXiv 2405.14867, section 4.3)."""
    return _over(nnf.softplus(-fake))


def logistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``[B]``: softplus(- D(real)) + softplus(D(fake)) (E40)."""
    return _over(nnf.softplus(-real)) + _over(nnf.softplus(fake))


def _over(values: Tensor) -> Tensor:
    return values.mean((-2, -1))
