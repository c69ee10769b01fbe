"""``teacher.mini:`` and ``teacher.gate:`` settings for building, training and testing the built-in teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rcm_core.config.base import Section
from rcm_core.config.types import Count, Length, Positive, Share, Threads


class MiniTraining(Section):
    """Architecture and training of the built-in teacher (ignored for an external teacher)."""

    layers: Count
    heads: Count
    head_dim: Annotated[int, Field(ge=8, multiple_of=2)]
    ffn_dim: Count
    text_dim: Count
    text_length: Count
    steps: Count
    batch: Count
    lr: Positive
    ema_length: Length
    condition_dropout: Share
    checkpoint_every: Count
    workers: Count = 1
    threads: Threads = 2
    patch: Count = 2
    """Pixels per token, in height and in width."""
    text_heads: Count = 4
    text_order: Positive = 1.0
    """Factor of the random text encoder's relative position biases (``mini.build_text_encoder``)."""
    text_steps: Annotated[int, Field(ge=0)] = 0
    """Training steps of the text encoder; 0: it stays random."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    time_mean: float = 0.0
    """Mean of the logit-normal distribution of training times; above 0 favours noise."""


class Gate(Section):
    """Accuracies that a trained teacher must reach before it is distilled."""

    judge_accuracy: Share
    teacher_accuracy: Share
    samples: Count
