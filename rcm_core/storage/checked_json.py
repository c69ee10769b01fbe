"""JSON files that must fit a schema. Keys that the schema does not name are allowed: stages may note more.

InputError names the file, the first thing that does not fit, and the stage that makes the file again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rcm_core.errors import InputError
from rcm_core.storage.formats import parse_json, read_text


class Facts(BaseModel):
    """Base of schemas: values are strict, unknown keys are allowed."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


def fit(schema: type[BaseModel], text: str, where: str, remedy: str) -> Any:
    """Return the JSON value in ``text``; InputError unless it fits ``schema``."""
    value = parse_json(text, where, remedy)
    try:
        schema.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        message = (
            message[0].lower()
            + message[1:]
            + (f", got {str(first['input'])[:80]!r}" if key and first["type"] != "missing" else "")
        )
        raise InputError(f"{where}: {f'{key}: ' if key else ''}{message}; {remedy}") from error
    return value


def read(path: Path, schema: type[BaseModel], made_by: str) -> Any:
    """Return the JSON value in ``path``; InputError, with the stage that writes it, unless it fits ``schema``."""
    if not path.exists():
        raise InputError(f"{path} does not exist; make it with `dvc repro {made_by}`")
    remedy = f"`dvc repro {made_by}` makes it again"
    return fit(schema, read_text(path, remedy), str(path), remedy)
