"""Count the network calls of each step by running the method on one-parameter stub networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from rcm_core.protocols import Batch, Condition, Examples, Method, TeacherTrajectory
from rcm_core.rng import generator
from rcm_core.training.networks import build_networks, roles_of

WHOLE = 256
"""Iterations that are all counted; of longer trainings this many in stretches of ``STRETCH``, evenly spread."""
STRETCH = 16

Calls = Counter[tuple[str, str]]
"""Samples by network and kind of pass: "plain" (no gradient), "gradient" (a backward pass follows), "tangent"."""


class Kind(NamedTuple):
    """Iterations that differ only in the number of network calls without gradient."""

    step: int
    """Representative step: of those that call most networks, the one with the fewest calls."""
    share: float
    """Share of all iterations."""
    plain: dict[str, float]
    """Samples through each network without gradient, on average over these iterations and one of their parts."""


class Weight(nn.Module):
    """A stub network with one parameter."""

    def __init__(self, role: str, calls: Calls) -> None:
        super().__init__()
        self.role, self.calls = role, calls
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:  # noqa: ARG002
        self.calls[self.role, kind_of(x)] += len(x)
        return self.weight * x

    def features(self, x: Tensor, t: Tensor, condition: Condition, blocks: Sequence[int]) -> list[Tensor]:
        tokens = self(x, t, condition).flatten(1)[..., None]
        return [tokens for _ in blocks]

    def log_variance(self, t: Tensor) -> Tensor:
        return self.weight * t


class Verdicts(nn.Module):
    """A stub for a discriminator's heads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.weight * torch.stack([tokens[..., 0] for tokens in features], 1)


def kind_of(x: Tensor) -> str:
    """Return the kind of the current pass through a network whose state is ``x``."""
    if forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        return "tangent"
    return "gradient" if torch.is_grad_enabled() else "plain"


def kinds(method: Method, iterations: int, batch: int, guidance: float, points: int) -> list[Kind]:
    """The kinds of iterations of a training with ``batch`` samples in a part, by their first steps.

    ``points``: of a recorded route.
    """
    steps = _steps(iterations)
    found: dict[Any, list[tuple[int, dict[str, int]]]] = {}
    for step in steps:
        calls, updates = _count(method, step, batch, guidance, points)
        plain = {role: n for (role, kind), n in calls.items() if kind == "plain"}
        rest = tuple(sorted((key, n) for key, n in calls.items() if key[1] != "plain"))
        found.setdefault((updates, rest), []).append((step, plain))
    return [_kind(alike, len(steps)) for alike in found.values()]


def _kind(alike: list[tuple[int, dict[str, int]]], total: int) -> Kind:
    step, _ = min(alike, key=lambda one: (-len(one[1]), sum(one[1].values()), one[0]))
    roles = {role for _, plain in alike for role in plain}
    mean = {role: sum(plain.get(role, 0) for _, plain in alike) / len(alike) for role in sorted(roles)}
    return Kind(step, len(alike) / total, mean)


def _steps(iterations: int) -> list[int]:
    if iterations <= WHOLE:
        return list(range(iterations))
    stretches = WHOLE // STRETCH
    starts = [i * (iterations - STRETCH) // (stretches - 1) for i in range(stretches)]
    return sorted({start + i for start in starts for i in range(STRETCH)})


def _count(method: Method, step: int, size: int, guidance: float, points: int) -> tuple[Calls, Any]:
    """Return the calls of one step, and the roles of its updates."""
    calls: Calls = Counter()
    frozen = Weight("teacher", calls).requires_grad_(False)
    batch = _batch(size, points)
    trained = {**{role: Weight(role, calls) for role in roles_of(method.requirements)}, "heads": Verdicts()}
    networks = build_networks(trained, frozen, guidance, batch.negative)
    updates = tuple(update.roles for update in method.updates(networks, batch, step, generator("plan", step)))
    return calls, updates


def _batch(size: int, points: int) -> Batch:
    rng = generator("plan")
    x0 = torch.randn(size, 1, 1, 1, 2, generator=rng)
    condition = {"text": torch.zeros(size, 1, 1)}
    t = torch.linspace(torch.pi / 2, 0.1, points).expand(size, -1)
    routes = torch.randn(2, size, points, *x0.shape[1:], generator=rng)
    return Batch(
        condition,
        {"text": torch.zeros(1, 1, 1)},
        x0,
        Examples(x0, condition),
        TeacherTrajectory(routes[0], t, routes[1]),
    )
