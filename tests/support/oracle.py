"""Cases of tests/oracle: inputs and outputs of the authors' published code, and the networks used for them.

``cases()`` reads them. ``Net`` is the network of every role. ``Draws`` gives a method the random numbers of its case.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rcm_core.protocols import Parameterisation

FOLDER = Path(__file__).parents[1] / "oracle"


@dataclass(frozen=True)
class Case:
    """Outputs of a release for ``inputs``; float64, in the notation of docs/maths.md."""

    method: str
    name: str
    kind: str
    """Kind of the case; one function runs all cases of a kind."""
    settings: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    tolerance: float
    """Maximum allowed ratio of the largest difference to the largest value of an output."""
    status: str
    """Status of the project when the file was written: "agrees", "differs on purpose", ..."""

    def __getitem__(self, name: str) -> Tensor:
        """Return the input ``name``."""
        return self.inputs[name]

    def __str__(self) -> str:
        return f"{self.method}-{self.name}"

    def net(self, role: str, embeds: str = "", parameterisation: Parameterisation | None = None) -> Net:
        """Return the network of ``role``, which embeds the condition's ``embeds`` in addition to the time."""
        return Net([self.inputs[f"{role}.{name}"] for name in WEIGHTS], embeds, parameterisation)


DIFFERENT = {
    "rcm-sampler-1-first-state",
    "rcm-sampler-4-first-state",
    "ect-fastgen-teacher-g3-huber0.06-stage1",
    "lcm-huber-elementwise",
    "lcm-boundary",
    "lcm-embedding",
    "lcm-grid",
}
"""Cases that differ on purpose: tests/oracle/test_differences.py asserts by how much, docs/maths.md explains why."""

WEIGHTS = ("W1", "b1", "W2", "b2")


def cases() -> Iterator[Case]:
    """Yield every case of every file, in order of file names."""
    for path in sorted(FOLDER.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            described = json.loads(file.metadata()["cases"])
        for name, case in described.items():
            inputs = {key: found[f"shared/{key}"] for key in case["shared"]} | below(found, f"{name}/in/")
            yield Case(
                path.stem,
                name,
                case["kind"],
                case["settings"],
                inputs,
                below(found, f"{name}/out/"),
                case["tolerance"],
                case["status"],
            )


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the ``tensors`` whose names begin with ``prefix``, with the prefix removed."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value of ``expected``; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    truth = expected.detach().double()
    difference = float((found.detach().double() - truth).abs().max())
    return difference / (float(truth.abs().max()) or 1.0)


class Net(nn.Module):
    """F = W2 tanh(W1 [x; cos t; sin t; text; e] + b1) + b2 for x [B, ...], t [B], text [B, 3], e [B].

    e is a tenth of the guidance scale ("guidance"), MeanFlow's end ("end"), or 0. Features of block k at token n are
    tokens[n] (1 + 0.3 k) times the hidden layer.
    """

    def __init__(
        self, weights: Sequence[Tensor], embeds: str = "", parameterisation: Parameterisation | None = None
    ) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weight.clone() for weight in weights)
        self.embeds = embeds
        self.tokens: Tensor = torch.ones(1, dtype=torch.float64)
        self.spread: Tensor | None = None
        if parameterisation is not None:
            self.parameterisation = parameterisation

    def hidden(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        scale = {"": 0.0, "guidance": 0.1, "end": 1.0}[self.embeds]
        e = scale * condition[self.embeds].to(x.dtype) if self.embeds else torch.zeros_like(t)
        columns = [x.flatten(1), t.cos()[:, None], t.sin()[:, None], condition["text"], e[:, None]]
        return (torch.cat(columns, 1) @ self.weights[0].T + self.weights[1]).tanh()

    def forward(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return (self.hidden(x, t, condition) @ self.weights[2].T + self.weights[3]).reshape(x.shape)

    def features(
        self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], blocks: Iterable[int]
    ) -> list[Tensor]:
        h = self.hidden(x, t, condition)
        return [(1 + 0.3 * k) * self.tokens[:, None] * h[:, None] for k in blocks]

    def log_variance(self, t: Tensor) -> Tensor:
        """Return fixed numbers, independent of ``t``."""
        assert self.spread is not None
        assert len(t) == len(self.spread)
        return self.spread


class Heads(nn.Module):
    """Discriminator heads: the logit of head k at a token is 2 sin(token . weight[k])."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.stack([2 * (f @ w).sin() for f, w in zip(features, self.weight, strict=True)], 1)


class Draws(TorchFunctionMode):
    """Context in which torch's random functions return predefined numbers, each kind in its order.

    ``normal``: randn of up to two dimensions; ``noise``: randn of more; ``uniform``: rand; ``integers``: randint and
    randperm.
    """

    def __init__(
        self,
        normal: Iterable[Tensor] = (),
        noise: Iterable[Tensor] = (),
        uniform: Iterable[Tensor] = (),
        integers: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        given = {"normal": normal, "noise": noise, "uniform": uniform, "integers": integers}
        self.left = {
            name: torch.cat([part.flatten() for part in parts] or [torch.zeros(0)])
            for name, parts in ((name, list(values)) for name, values in given.items())
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.randn:
            return self._take("noise" if len(args) > 2 else "normal", args, options)
        if func is torch.rand:
            return self._take("uniform", args, options)
        if func is torch.randint:
            return self._take("integers", args[-1], options).long()
        if func is torch.randperm:
            return self._take("integers", args, options).long()
        return func(*args, **options)

    def _take(self, name: str, size: Sequence[int], options: Mapping[str, Any]) -> Tensor:
        count = math.prod(size)
        values, self.left[name] = self.left[name][:count], self.left[name][count:]
        assert len(values) == count, f"{count} {name} numbers requested, {len(values)} remain"
        return values.reshape(tuple(size)).to(options.get("dtype") or values.dtype)
