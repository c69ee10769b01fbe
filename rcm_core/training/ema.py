"""Power-function averages of the weights, several lengths at once (Karras et al. 2023, arXiv 2312.02696,
section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rcm_core.errors import InputError
from rcm_core.training.parallel.collectives import move_towards


def power_exponent(length: float) -> float:
    """Return gamma of the profile i^gamma whose relative standard deviation is ``length`` (E29)."""
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    real = roots.real[abs(roots.imag) < 1e-9 * (1 + abs(roots.real))]
    if len(real) == 0 or real.max() <= -1:
        raise InputError(f"EMA length {length} has no power-function profile; choose one below 0.28")
    return float(real.max())


def decay(exponent: float, update: int) -> float:
    """Return the EMA's decay at update ``update`` = 0, 1, ...; zero at the first (E30)."""
    return float((1 - 1 / (update + 1)) ** (exponent + 1))


class PowerEMA:
    """float32 averages of a module's trainable parameters, one per relative length.

    Time is counted in student updates. Each average of a DTensor is sharded as its parameter is.
    """

    def __init__(self, module: nn.Module, lengths: Sequence[float]) -> None:
        self.exponents = {length: power_exponent(length) for length in lengths}
        self.averages = {
            length: {name: p.detach().clone().float() for name, p in module.named_parameters()}
            for length in lengths
        }
        self.updates = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the averages; call this once after every student update, on every rank."""
        weights = [p.detach().float() for _, p in module.named_parameters()]
        for length, exponent in self.exponents.items():
            share = 1 - decay(exponent, int(self.updates))
            move_towards(list(self.averages[length].values()), weights, share)
        self.updates += 1

    def weights(self, length: float) -> dict[str, Tensor]:
        """Return the average of relative length ``length`` by parameter name; not a copy."""
        return self.averages[length]

    @contextmanager
    def instead(self, module: nn.Module, length: float) -> Iterator[None]:
        """Swap the average of ``length`` into ``module`` within the block, then restore the exact own weights."""
        parameters = dict(module.named_parameters())
        own = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            _copy(self.averages[length], parameters)
            yield
        finally:
            _copy(own, parameters)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a distributed checkpoint; tensors are not copied, so loading in place works."""
        averages = {str(length): dict(weights) for length, weights in self.averages.items()}
        return {"updates": self.updates, "averages": averages}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load ``state``; InputError unless it has exactly these lengths and parameters."""
        expected = {str(length): set(weights) for length, weights in self.averages.items()}
        stored = {length: set(weights) for length, weights in state["averages"].items()}
        if expected != stored:
            raise InputError(
                f"the checkpoint has EMA lengths {sorted(stored)}, this run has {sorted(expected)}, or their "
                "parameters differ; start a new run"
            )
        for length, weights in self.averages.items():
            for name, average in weights.items():
                average.copy_(state["averages"][str(length)][name])
        self.updates.copy_(state["updates"])


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
