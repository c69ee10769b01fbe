"""Distributions with teacher, score and consistency function in closed form, in TrigFlow notation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from rcm_core.diffusion.trigflow import per_sample
from rcm_core.networks.embeddings import Embedding, LogVariance


@dataclass(frozen=True)
class Mixture:
    """Sum of ``weights`` [K] x N(``means`` [K, D], ``std``^2 I)."""

    weights: Tensor
    means: Tensor
    std: float

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        which = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        noise = torch.randn(count, self.means.shape[1], generator=rng, dtype=self.means.dtype)
        return self.means[which] + self.std * noise

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for x = alpha x0 + sigma eps, responsibilities [B, K, 1], deviations [B, K, D] and variances."""
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        deviation = x[:, None] - alpha * self.means
        variance = (alpha * self.std) ** 2 + sigma**2
        logits = self.weights.log() - (deviation.square() / (2 * variance)).sum(-1)
        return logits.softmax(1)[..., None], deviation, variance

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x0 | x] for x = alpha x0 + sigma eps."""
        share, deviation, variance = self._posterior(x, alpha, sigma)
        gain = alpha.reshape(-1, 1, 1) * self.std**2 / variance
        return (share * (self.means + gain * deviation)).sum(1)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[eps | x] for x = alpha x0 + sigma eps."""
        share, deviation, variance = self._posterior(x, alpha, sigma)
        return (share * sigma.reshape(-1, 1, 1) / variance * deviation).sum(1)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the gradient of the log density of the state at angle t."""
        share, deviation, variance = self._posterior(x, t.cos(), t.sin())
        return -(share * deviation / variance).sum(1)

    def velocity(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        """Return E[cos t z - sin t x0 | x]: the exact teacher."""
        cos, sin = t.cos().to(x.dtype), t.sin().to(x.dtype)
        noise, clean = self.noise(x, cos, sin), self.denoise(x, cos, sin)
        return per_sample(cos, x) * noise - per_sample(sin, x) * clean


@dataclass(frozen=True)
class Gaussian:
    """N(``mean`` [D], ``std``^2 I), with the probability-flow ODE in closed form."""

    mean: Tensor
    std: float

    def mixture(self) -> Mixture:
        return Mixture(torch.ones(1, dtype=self.mean.dtype), self.mean[None], self.std)

    def velocity(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return self.mixture().velocity(x, t)

    def deviation(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the state at angle ``t``."""
        return ((t.cos() * self.std) ** 2 + t.sin() ** 2).sqrt()

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the ODE's solution at ``s`` through ``x`` at ``t``: the flow scales deviations from the mean."""
        ratio = per_sample(self.deviation(s) / self.deviation(t), x)
        centred = x - per_sample(t.cos(), x) * self.mean
        return per_sample(s.cos(), x) * self.mean + ratio * centred

    def consistency_velocity(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        """Return the F whose clean prediction is the exact consistency function, for t well above 0.

        It divides by sin t.
        """
        end = self.flow(x, t, torch.zeros_like(t))
        return (per_sample(t.cos(), x) * x - end) / per_sample(t.sin(), x)


def six_modes(dtype: torch.dtype = torch.float32) -> Mixture:
    """Return six narrow modes on a circle, with unit total variance per coordinate."""
    angles = torch.arange(6, dtype=dtype) * (2 * math.pi / 6)
    means = math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], 1) * 0.98
    return Mixture(torch.ones(6, dtype=dtype) / 6, means, 0.1)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return the unbiased 2 E|a - b| - E|a - a'| - E|b - b'|: near 0 (either sign) for equal distributions."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


class Perceptron(nn.Module):
    """A small smooth Network for states [B, D]; its hidden layers are its blocks, with one token each.

    ``extras`` are the student's: "guidance" and "end" are inputs from the condition, "log_variance" is the head.
    """

    def __init__(
        self, dimension: int = 2, width: int = 96, seed: int = 0, extras: Iterable[str] = ()
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = {
                name: LogVariance() if name == "log_variance" else Embedding(width) for name in sorted(extras)
            }
        self.extras = nn.ModuleDict(made)
        rng = torch.Generator().manual_seed(seed)
        sizes = [dimension + 4, width, width, width, dimension]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.normal_(0, layer.in_features**-0.5, generator=rng)
                layer.bias.zero_()

    def forward(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.layers[-1](self._hidden(x, t, condition or {})[-1])

    def log_variance(self, t: Tensor) -> Tensor:
        return self.extras["log_variance"](t)

    def features(
        self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], blocks: Sequence[int]
    ) -> list[Tensor]:
        hidden = self._hidden(x, t, condition)
        return [hidden[index][:, None] for index in blocks]

    def _hidden(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> list[Tensor]:
        t = t.to(x.dtype)[:, None]
        h = self.layers[0](torch.cat([x, t.cos(), t.sin(), (2 * t).cos(), (2 * t).sin()], 1))
        for name, layer in self.extras.items():
            if name in condition:
                h = h + layer(condition[name])
        found = [torch.nn.functional.silu(h)]
        for layer in self.layers[1:-1]:
            found.append(torch.nn.functional.silu(layer(found[-1])))
        return found
