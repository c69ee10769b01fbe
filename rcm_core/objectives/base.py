"""A term is a loss with its networks: what the methods schedule.

Every term returns a scalar (the mean over the samples that are finite) and detached scalars for the log;
"nonfinite" is the number of samples that were left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    loss: Tensor
    scalars: dict[str, Tensor]


def unit_noise(rng: torch.Generator, like: Tensor, *steps: int) -> Tensor:
    """Unit noise [*steps, *like.shape] in the dtype and on the device of ``like``, drawn on the device of
    ``rng``.
    """
    draws = torch.randn(*steps, *like.shape, generator=rng, device=rng.device, dtype=like.dtype)
    return draws.to(like.device)


def left_out(finite: Tensor) -> Tensor:
    """How many samples of ``finite`` [B] were left out."""
    return (~finite).sum().float()
