"""Guidance embedding: a random guidance scale per sample as an input of the student (sCM, arXiv 2410.11081, section
5.1; SANA-Sprint, arXiv 2503.09641, section 3.2).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator

from rcm_core.config.base import Section
from rcm_core.protocols import Condition

Scale = Annotated[float, Field(ge=0)]


class GuidanceSection(Section):
    """Parameters of every method that can embed the guidance scale."""

    guidance: Annotated[tuple[Scale, ...], Field(min_length=1)] | None
    """Guidance scales to sample from and to embed into the student; null: only the teacher's own scale."""
    guidance_at: Scale | None
    """Guidance scale that is folded into the published student."""

    @model_validator(mode="after")
    def _both(self) -> GuidanceSection:
        if (self.guidance is None) != (self.guidance_at is None):
            raise ValueError("expected guidance and guidance_at together, or null for both")
        if self.guidance and self.guidance_at is not None:
            low, high = min(self.guidance), max(self.guidance)
            if not low <= self.guidance_at <= high:
                raise ValueError(
                    f"guidance_at = {self.guidance_at:g} is outside the trained scales, {low:g} to {high:g};"
                    " change guidance or guidance_at"
                )
        return self

    @property
    def embedded(self) -> frozenset[str]:
        """The student's extra for an embedded scale; empty if ``guidance`` is null."""
        return frozenset() if self.guidance is None else frozenset({"guidance"})


def with_scale(config: GuidanceSection, condition: Condition, size: int, rng: torch.Generator) -> Condition:
    """Add a random scale per sample under "guidance" to ``condition`` of ``size`` samples, if the method embeds it."""
    if config.guidance is None:
        return condition
    choices = torch.tensor(config.guidance, device=rng.device)
    scales = choices[torch.randint(len(choices), (size,), generator=rng, device=rng.device)]
    device = next(iter(condition.values())).device if condition else scales.device
    return {**condition, "guidance": scales.to(device)}
