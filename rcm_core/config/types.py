"""Types of settings: numbers with their ranges, names, endpoints."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return ``values``; ValueError if two of them are equal in six digits, as names show them."""
    names = [f"{value:g}" for value in values]
    if len(set(names)) < len(names):
        raise ValueError("holds a value twice; remove one")
    return values


def with_scheme(endpoint: str) -> str:
    """Return ``endpoint``; ValueError unless it is a URL with its scheme."""
    if not re.fullmatch(r"https?://[^/\s?#]+(/\S*)?", endpoint):
        raise ValueError("expected a URL with its scheme, as in http://minio:9000")
    return endpoint


Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Resamples = Annotated[int, Field(ge=2, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Length = Annotated[float, Field(gt=0, lt=0.28)]
Lengths = Annotated[tuple[Length, ...], Field(min_length=1), AfterValidator(distinct)]
Factor = Annotated[float, Field(gt=1)]
Steps = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(distinct)]
Endpoint = Annotated[str, AfterValidator(with_scheme)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
