"""A discrete grid of flow times between noise and data: the parameters of methods that step along it."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from rcm_core.config import Count, Positive
from rcm_core.section import Section


class GridSection(Section):
    """``points`` equal steps of unshifted flow time."""

    points: Count
    """N: steps between noise and data."""
    skip: Count
    """k: how many of them lie between the two sides of a pair."""
    shift: Positive
    """Of the grid in flow time (E13)."""

    @field_validator("skip")
    @classmethod
    def _fits(cls, skip: int, info: ValidationInfo) -> int:
        if skip >= info.data.get("points", skip + 1):
            raise ValueError(f"expected less than points = {info.data['points']}")
        return skip
