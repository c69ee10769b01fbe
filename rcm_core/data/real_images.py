"""Real images with their prompts, addressed by number: the real examples of adversarial losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rcm_core.data.prompts import by_label
from rcm_core.registry import find_benchmark
from rcm_core.rng import address, generator


@dataclass(frozen=True)
class RealExamples:
    """Examples of the benchmark ``data`` (its train split alone), each with one of ``prompts``."""

    data: str
    prompts: tuple[str, ...]
    seed: int

    def of(self, ids: tuple[int, ...]) -> tuple[Tensor, tuple[str, ...]]:
        """Return pixels in [-1, 1], [B, C, T, H, W], and their prompts; example i is a function of (seed, i)."""
        benchmark = find_benchmark(self.data)
        if benchmark.draw is not None:
            return self._draw(benchmark.draw, ids)
        images, labels = benchmark.images("train")
        named = by_label(self.prompts, benchmark.label, labels.tolist())
        rows = [address(self.seed, "real", i) % len(images) for i in ids]
        choices = [named[int(labels[row])] for row in rows]
        numbers = (c[address(self.seed, "real prompt", i) % len(c)] for i, c in zip(ids, choices))
        return images[rows], tuple(self.prompts[number] for number in numbers)

    def _draw(
        self, draw: Callable[[str, str, torch.Generator], Tensor], ids: tuple[int, ...]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Compose each image for its own prompt, if the benchmark draws images."""
        prompts = tuple(self.prompts[address(self.seed, "real prompt", i) % len(self.prompts)] for i in ids)
        drawn = [draw(prompt, "train", generator(self.seed, "real", i)) for i, prompt in zip(ids, prompts)]
        return torch.stack(drawn), prompts
