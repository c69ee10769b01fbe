"""Terms: losses evaluated with networks, which the methods schedule.

Every term returns a scalar (the mean over the finite samples) and detached scalars for the log;
"nonfinite" is the number of masked samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    loss: Tensor
    scalars: dict[str, Tensor]


def unit_noise(rng: torch.Generator, like: Tensor, *steps: int) -> Tensor:
    """Sample unit noise [*steps, *like.shape] on the device of ``rng``; convert it to dtype and device of ``like``."""
    draws = torch.randn(*steps, *like.shape, generator=rng, device=rng.device, dtype=like.dtype)
    return draws.to(like.device)


def left_out(finite: Tensor) -> Tensor:
    """Return the number of samples that are False in ``finite`` [B]."""
    return (~finite).sum().float()
