"""Sources of batches. Each batch is a function of (seed, step, part), so resuming needs no saved iterator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rcm_core.data.trajectory_store import Store
from rcm_core.errors import InputError
from rcm_core.protocols import Batch, Condition, Examples, TeacherTrajectory
from rcm_core.rng import generator


class Order:
    """An endless shuffled order over ``count`` samples, reshuffled every epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.permutation = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(self.count, generator=generator(self.seed, "order", epoch))

    def indices(self, first: int, size: int) -> list[int]:
        """Return the sample indices at positions ``first .. first + size`` of the order."""
        return [int(self.permutation(p // self.count)[p % self.count]) for p in range(first, first + size)]


GROUPS = {"x0": "x0", "condition": "condition.", "routes": "route.", "real": "real."}
"""Part of a batch that a source can provide -> prefix of its tensors' names in a store."""


class TrajectorySource:
    """Latents and their text embeddings from a ``Store``, and the further parts in ``needs``. Latents of real data
    are the real examples too.

    The last ``held`` samples of the store are in no batch. InputError if they are more than half of it.
    """

    def __init__(
        self,
        store: Store,
        global_batch: int,
        seed: int,
        device: torch.device,
        needs: frozenset[str],
        held: int = 0,
    ) -> None:
        if 2 * held > len(store):
            raise InputError(
                f"train.health.probe_samples {held} of {len(store)} trajectories would be held back from training, more"
                " than half; lower it, make more (trajectories.samples), or set train.health.probe_every to null"
            )
        self.store, self.global_batch, self.device, self.held = store, global_batch, device, held
        self.order = Order(len(store) - held, seed)
        self.negative = _below("condition.", {k: v.to(device) for k, v in store.negative.items()})
        self.provides = frozenset(k for k, p in GROUPS.items() if any(n.startswith(p) for n in store.names))
        if store.real:
            self.provides |= {"real"}
        self.themselves = store.real and "real" in needs
        wanted = tuple(GROUPS[k] for k in {"x0", "condition"} | needs)
        self.names = [name for name in store.names if name.startswith(wanted)]

    def batch(self, step: int, part: int, size: int) -> Batch:
        """Return part ``part`` of the global batch of ``step``: [size, ...] tensors."""
        indices = self.order.indices(step * self.global_batch + part * size, size)
        stacked = {name: value.to(self.device) for name, value in self._stack(indices, self.names).items()}
        own = Examples(stacked["x0"], _below("condition.", stacked))
        real, route = _below("real.", stacked), _below("route.", stacked)
        described = Examples(real["x0"], _below("condition.", real)) if real else None
        return Batch(
            own.condition,
            self.negative,
            own.x0,
            own if self.themselves else described,
            TeacherTrajectory(route["x"], route["t"], route["v"]) if route else None,
        )

    def held_back(self) -> Examples:
        """Return the held-out samples, which no batch contains, on the CPU: latents and their conditions."""
        own = [n for n in self.names if n.startswith((GROUPS["x0"], GROUPS["condition"]))]
        stacked = self._stack(range(len(self.store) - self.held, len(self.store)), own)
        return Examples(stacked["x0"], _below("condition.", stacked))

    def _stack(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        samples = [self.store.sample(i, names) for i in indices]
        return {name: torch.stack([s[name] for s in samples]) for name in names}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, under the names without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


class ImageSource:
    """Real images, each with a random prompt of its label, for training the built-in teacher."""

    def __init__(
        self,
        images: Tensor,
        choices: Sequence[Tensor],
        table: Condition,
        negative: Condition,
        batch: int,
        seed: int,
    ) -> None:
        """Take ``choices[i]``, the rows of ``table`` (encoded prompts) that describe image ``i``."""
        self.images, self.choices, self.table, self.negative = images, choices, table, negative
        self.global_batch, self.seed = batch, seed
        self.order = Order(len(images), seed)

    def batch(self, step: int, part: int, size: int) -> Batch:
        """Return part ``part`` of the global batch of ``step``."""
        indices = self.order.indices(step * self.global_batch + part * size, size)
        draws = torch.rand(size, generator=generator(self.seed, "prompt", step, part))
        rows = torch.stack([self.choices[i][int(d * len(self.choices[i]))] for i, d in zip(indices, draws)])
        condition = {name: value[rows] for name, value in self.table.items()}
        return Batch(condition, self.negative, self.images[indices])


class DrawnSource:
    """Images drawn for prompts as they are asked for, labels in turn: no image comes twice."""

    provides = frozenset({"x0", "condition"})

    def __init__(
        self,
        draw: Callable[[int, torch.Generator], Tensor],
        groups: Sequence[Sequence[int]],
        table: Condition,
        negative: Condition,
        batch: int,
        seed: int,
    ) -> None:
        """``draw(row, rng)`` is an image of the prompt in ``row`` of ``table``; ``groups`` are the rows by label."""
        self.draw, self.groups, self.table, self.negative = draw, groups, table, negative
        self.global_batch, self.seed = batch, seed

    def batch(self, step: int, part: int, size: int) -> Batch:
        """Return part ``part`` of the global batch of ``step``; the number of parts does not change the samples."""
        first = step * self.global_batch + part * size
        rows, images = [], []
        for position in range(first, first + size):
            rng = generator(self.seed, "drawn", position)
            group = self.groups[position % len(self.groups)]
            rows.append(group[int(torch.randint(len(group), (1,), generator=rng))])
            images.append(self.draw(rows[-1], rng))
        condition = {name: value[torch.tensor(rows)] for name, value in self.table.items()}
        return Batch(condition, self.negative, torch.stack(images))
