"""``teacher.mini:`` and ``teacher.gate:`` how the embedded teacher is built, trained and tested."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rcm_core.config.base import Section
from rcm_core.config.types import Count, Length, Positive, Share, Threads


class MiniTraining(Section):
    """How the embedded teacher is built and trained (ignored for a teacher that is given)."""

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
    """How much the text encoder as drawn heeds the order of words (``mini.build_text_encoder``)."""
    text_steps: Annotated[int, Field(ge=0)] = 0
    """In which it is taught to read prompts; 0: it stays random."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    time_mean: float = 0.0
    """Of the logit-normal flow times that are trained; above 0 leans towards noise."""


class Gate(Section):
    """What a trained teacher must reach before anything is distilled from it."""

    judge_accuracy: Share
    teacher_accuracy: Share
    samples: Count
