"""A model under check: its network, cut to a few blocks, and inputs that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from rcm_core.jvp import Exactly
from rcm_core.networks.denoiser import Denoiser
from rcm_core.protocols import Condition, Family


class Subject(NamedTuple):
    """A model under check."""

    family: Family
    folder: Path
    denoiser: Denoiser
    """Denoiser in float32, cut to its first few blocks."""
    x: Tensor
    t: Tensor
    condition: Condition

    def copy(self) -> Denoiser:
        """The denoiser with weights of its own."""
        return Denoiser(deepcopy(self.denoiser.network), self.family, self.denoiser.parameterisation)


def cut(network: nn.Module, names: Sequence[str], count: int) -> None:
    """Keep only the first ``count`` of each list of blocks, so that the rest fits a check in float64."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and any(type(m).__name__ in names for m in child):
                setattr(module, name, child[:count])


@contextmanager
def in_double(subject: Subject) -> Iterator[tuple[Denoiser, Tensor, Tensor, Condition]]:
    """The subject in float64: differences are then an oracle to seven digits instead of three."""
    denoiser = subject.copy().double()
    condition = {name: value.double() for name, value in subject.condition.items()}
    with Exactly():
        yield denoiser, subject.x.double(), subject.t.double(), condition
