"""Training of ``mini``'s text encoder on the grammar of its benchmark, in place of the pretraining on text that real
encoders have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rcm_core.rng import generator

Meanings = Callable[[str], Mapping[int, tuple[int, ...]]]
"""Function from a prompt to the meanings of its relevant words: word index -> classes, from 0."""
BATCH, PEAK_LR = 128, 3e-3


def teach(encoder: Any, tokenizer: Any, prompts: Sequence[str], meanings: Meanings, steps: int) -> None:
    """Train ``encoder`` for ``steps`` steps so that a linear probe on each token recovers its word's meaning."""
    tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")
    words = [[(at, *classes) for at, classes in sorted(meanings(prompt).items())] for prompt in prompts]
    sizes = [1 + max(row[i] for rows in words for row in rows) for i in range(1, len(words[0][0]))]
    rng = generator(0, "reading")
    width: int = encoder.config.d_model
    head = torch.randn(width, sum(sizes), generator=rng).div(width**0.5).requires_grad_()
    learned = [*encoder.requires_grad_(True).parameters(), head]
    optimiser = torch.optim.AdamW(learned, PEAK_LR)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(prompts), (BATCH,), generator=rng)
        rows = torch.tensor([(i, *row) for i, k in enumerate(chosen.tolist()) for row in words[k]])
        hidden = encoder(tokens.input_ids[chosen], tokens.attention_mask[chosen]).last_hidden_state
        _surprise(hidden[rows[:, 0], rows[:, 1]] @ head, rows[:, 2:], sizes).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        decay.step()
    encoder.requires_grad_(False)


def _surprise(logits: Tensor, classes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the sum of the cross-entropies over all kinds of classes."""
    return torch.stack(
        [F.cross_entropy(part, classes[:, i]) for i, part in enumerate(torch.split(logits, list(sizes), 1))]
    ).sum()
