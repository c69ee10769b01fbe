"""Settings of ``train:`` that may differ between the roles that a method trains."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rcm_core.config.base import Section

Positive = Annotated[float, Field(gt=0)]
Number = Annotated[int, Field(ge=0)]


class LearningRates(Section):
    """Learning rate of every role that the method trains."""

    student: Positive
    fake: Positive | None = None
    heads: Positive | None = None

    @property
    def given(self) -> dict[str, float]:
        """Rates of the roles that have one."""
        return self.model_dump(exclude_none=True)


class PerRole(Section):
    """One value for all roles, or a value for each: ``20`` or ``{student: 20, fake: 0}``."""

    @model_validator(mode="before")
    @classmethod
    def _same_for_all(cls, given: Any) -> Any:
        return given if isinstance(given, dict) else dict.fromkeys(cls.model_fields, given)

    @model_serializer(mode="wrap")
    def _one_for_all(self, dump: SerializerFunctionWrapHandler) -> Any:
        values = dump(self)
        first, *others = (getattr(self, role) for role in type(self).model_fields)
        same = len(values) == len(others) + 1 and all(other == first for other in others)
        return first if same else values


class Updates(PerRole):
    """Updates of each role's optimiser; 0 for a role that is not named."""

    student: Number = 0
    fake: Number = 0
    heads: Number = 0

    @property
    def given(self) -> dict[str, int]:
        """Number of updates of every role."""
        return dict(self)


class Limits(PerRole):
    """A limit for each role; none for a role that is null or not named."""

    student: Positive | None = None
    fake: Positive | None = None
    heads: Positive | None = None

    @property
    def given(self) -> dict[str, float]:
        """Limits of the roles that have one."""
        return {role: limit for role, limit in self if limit is not None}
