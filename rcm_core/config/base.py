"""Base class of all sections of params.yaml, and the error for values that do not fit."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from rcm_core.config.renamed import RENAMED_VALUES, new_name
from rcm_core.errors import InputError, nearest


class Section(BaseModel):
    """Frozen, complete, no unknown key, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def check(section: type[S], raw: Any, where: str) -> S:
    """Return ``raw`` as a ``section``. YAML lists become tuples; integers are accepted for floats."""
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected keys and values, got {type(raw).__name__}")
    try:
        text = json.dumps(raw)
    except TypeError as error:
        raise InputError(
            f"{where}: {error}; expected numbers, texts, lists and null (quote a date)"
        ) from error
    try:
        return section.model_validate_json(text)
    except ValidationError as error:
        errors = error.errors()
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        raise InputError(f"{where}: {_sentence(section, first)}") from error


def _sentence(section: type[Section], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        owner: Any = section
        for part in error["loc"][:-1]:
            owner = _field_section(owner, str(part))
        names = list(owner.model_fields) if owner else []
        new = new_name(str(error["loc"][-1]), names)
        if new is not None:
            return f"unknown key {key!r}: it is now called {new!r}; rename it"
        hint = nearest(str(error["loc"][-1]), names)
        return f"unknown key {key!r}{hint}; known here: {', '.join(names)}"
    if error["type"] == "missing":
        return f"key {key!r} is missing; add it (conf/ has its default)"
    if error["type"] == "literal_error":
        new = RENAMED_VALUES.get(str(error["loc"][-1]), {}).get(error["input"])
        if new is not None:
            return f"{key} = {error['input']!r}: this value is now called {new!r}; rename it"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error["input"], dict) and error["type"] == "value_error":
        # the error concerns several keys; its sentence names them
        return f"{key}: {message}" if key else message
    return f"{key} = {error['input']!r}: {message}{_number_hint(error['input'])}"


def _number_hint(value: Any) -> str:
    """Return a hint for numbers such as ``1e-3``, which YAML 1.1 reads as text; else an empty string."""
    if not isinstance(value, str) or not re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return ""
    return f"; YAML takes {value} for text, write it as {float(value)!r}"


def _field_section(owner: Any, name: str) -> Any:
    field = owner.model_fields.get(name) if owner else None
    if field is None:
        return None
    options = [field.annotation, *get_args(field.annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
