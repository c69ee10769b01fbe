"""Networks that record their calls, and methods with the parameters of their presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import presets
import torch
from torch import Tensor, nn

from rcm_core.config.base import check
from rcm_core.registry import find


class Call(NamedTuple):
    x: Tensor
    t: Tensor
    condition: Mapping[str, Tensor]
    grad: bool
    """Whether gradients were enabled."""


class Spy(nn.Module):
    """``velocity``, a Network or a plain function, that records every call in ``calls``."""

    def __init__(self, velocity: Callable[..., Tensor]) -> None:
        super().__init__()
        self.velocity = velocity
        self.calls: list[Call] = []

    def forward(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        self.calls.append(Call(x.detach(), t.detach(), dict(condition), torch.is_grad_enabled()))
        return self.velocity(x, t, condition)

    def features(
        self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], blocks: Sequence[int]
    ) -> list[Tensor]:
        self.calls.append(Call(x.detach(), t.detach(), dict(condition), torch.is_grad_enabled()))
        return self.velocity.features(x, t, condition, blocks)

    def log_variance(self, t: Tensor) -> Tensor:
        return self.velocity.log_variance(t)

    @property
    def moving(self) -> list[Call]:
        """Return the calls with gradient."""
        return [call for call in self.calls if call.grad]


def preset(name: str, tangent: str = "exact", **changes: Any) -> Any:
    """Return the method of ``conf/method/<name>.yaml`` with some parameters changed."""
    section = presets.preset(name)["method"] | changes
    module = find("methods", section.pop("name"))
    return module.build(check(module.Config, section, name), tangent)


def gradients(loss: Tensor, network: nn.Module) -> Tensor:
    """Return the concatenated gradients of ``network``'s trained parameters; zero where a gradient is missing."""
    weights = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(weights, found)]
    )
