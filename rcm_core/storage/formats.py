"""Strict readers of text, JSON, JSON lines, YAML, CSV, Parquet and safetensors files.

Each raises InputError with one sentence: the file, the damage, and ``remedy``, which says what to do. Nothing is
repaired and nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Hashable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import yaml

from rcm_core.errors import InputError, one_line
from rcm_core.units import MIB

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 256 * MIB
"""Largest text file in bytes that is read; the files written here are far smaller."""
MOST_YAML = MIB
"""Largest YAML file in bytes that is read; its parser is slow."""
UNPICKLING = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError,
    UnpicklingError, ValueError,
)  # fmt: skip
"""Exceptions of torch.load for bytes that torch.save did not write."""
MOST_DEPTH = 100
"""Deepest nesting of lists and mappings."""
MOST_NODES = 100_000
"""Most values of a YAML file after expansion of its aliases."""


def read_text(path: Path, remedy: str, most: int = MOST_BYTES) -> str:
    """Return the UTF-8 text in ``path``, without a byte order mark."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path} is not a file; {remedy}")
        if size > most:
            raise InputError(
                f"{path} has {size:,} bytes, expected at most {most:,}; it is another file: {remedy}"
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); {remedy}"
        ) from error
    except OSError as error:
        why = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        )
        raise InputError(f"{path} {why}; {remedy}") from error


def parse_json(text: str, where: str, remedy: str) -> Any:
    """Return the JSON value in ``text``. Repeated keys, numbers that are not finite, halves of surrogate pairs and deep
    nesting are errors.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_number, parse_float=_finite)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise InputError(f"{where} is not JSON ({reason}); {remedy}") from error
    if _depth(value) > MOST_DEPTH:
        raise InputError(f"{where} has lists and objects nested more than {MOST_DEPTH} deep; {remedy}")
    return value


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in ``path``."""
    value = parse_json(read_text(path, remedy), str(path), remedy)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {_kind(value)}; expected a JSON object: {remedy}")
    return value


def text_lines(text: str) -> list[str]:
    """Split ``text`` into lines: only a line feed, a carriage return or both end a line."""
    return re.split("\r\n|\n|\r", text)


def parse_json_lines(text: str, where: str, remedy: str) -> pd.DataFrame:
    """Return the table in ``text``, a JSON object per line; absent keys are missing values. Blank lines are skipped."""
    import pandas as pd

    rows = []
    for number, line in enumerate(text_lines(text), 1):
        if not line.strip():
            continue
        value = parse_json(line, f"{where}: line {number}", remedy)
        if not isinstance(value, dict):
            raise InputError(f"{where}: line {number} holds {_kind(value)}; expected a JSON object: {remedy}")
        rows.append(value)
    return pd.DataFrame(rows, dtype=object)


def parse_parquet(content: bytes, where: str, remedy: str) -> pd.DataFrame:
    """Return the table in the bytes of a Parquet file."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        table = read_table(io.BytesIO(content))
        table.validate(full=True)  # texts are UTF-8
        frame: pd.DataFrame = table.to_pandas()
    except (ValueError, OSError, ArrowException) as error:
        raise InputError(f"{where} is not a Parquet table ({one_line(error)}); {remedy}") from error
    if not frame.columns.is_unique:
        raise InputError(f"{where} has two columns of one name; {remedy}")
    return frame


def read_yaml(path: Path, remedy: str) -> Any:
    """Return the YAML value in ``path``. Repeated keys, large alias expansions, cycles and deep nesting are errors."""
    text = read_text(path, remedy, MOST_YAML)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, 0, f"{path}", remedy)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise InputError(f"{path} is not YAML: {reason}; {remedy}") from error
    finally:
        loader.dispose()


def read_csv(path: Path, columns: tuple[str, ...], remedy: str) -> list[dict[str, float]]:
    """Return rows of numbers, without empty cells. The header and every row must have ``columns``."""
    try:
        reader = csv.DictReader(read_text(path, remedy).splitlines(), strict=True)
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names) or not set(columns) <= set(names):
            raise InputError(f"{path} has the columns {names}; expected {', '.join(columns)} once: {remedy}")
        rows = [
            {name: _finite(text) for name, text in row.items() if text not in ("", None)}
            for row in (_whole(row, names) for row in reader)
        ]
    except (csv.Error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a table of numbers ({one_line(error)}); {remedy}") from error
    if any(column not in row for row in rows for column in columns):
        raise InputError(f"{path} has a row without {', '.join(columns)}; {remedy}")
    return rows


def read_tensors(path: Path, remedy: str) -> dict[str, Any]:
    """Return the tensors of a safetensors file by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path} does not exist; {remedy}")
    try:
        tensors: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({one_line(error)}); {remedy}") from error
    return tensors


def read_pickled(source: Path | BinaryIO, where: str, remedy: str, mmap: bool = False) -> Any:
    """Return what ``torch.save`` wrote, on the CPU; only tensors and plain containers are unpickled."""
    import torch

    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except UNPICKLING as error:
        raise InputError(
            f"{where} is no file of tensors that can be read safely ({one_line(error)}); {remedy}"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return found


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_number(text)
    return value


def _whole(row: dict[Any, Any], names: list[str]) -> dict[str, Any]:
    if None in row or any(row[name] is None for name in names):
        raise ValueError("a row has more or fewer cells than the header")
    return row


def _depth(value: Any) -> int:
    deepest, open_values = 0, [(value, 1)]
    while open_values:
        here, depth = open_values.pop()
        deepest = max(deepest, depth)
        inside = here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()
        open_values += [(inner, depth + 1) for inner in inside]
    return deepest


def _measure(node: yaml.Node, known: dict[int, int], depth: int, where: str, remedy: str) -> int:
    """Return the number of values that ``node`` expands to; -1 in ``known`` marks the nodes above it."""
    if known.get(id(node)) == -1:
        raise InputError(f"{where} has an alias inside the value that it names; {remedy}")
    if depth > MOST_DEPTH:
        raise InputError(f"{where} has lists and mappings nested more than {MOST_DEPTH} deep; {remedy}")
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = -1
    size = 1
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated(node, where, remedy)
    if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                size += _measure(part, known, depth + 1, where, remedy)
    if size > MOST_NODES:
        raise InputError(f"{where} expands to more than {MOST_NODES:,} values through its aliases; {remedy}")
    known[id(node)] = size
    return size


def _refuse_repeated(node: yaml.MappingNode, where: str, remedy: str) -> None:
    seen: set[Hashable] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{where}, line {key.start_mark.line + 1}: a key is no text; {remedy}")
        if key.value in seen:
            raise InputError(
                f"{where}, line {key.start_mark.line + 1}: the key {key.value!r} stands there twice; remove one"
            )
        seen.add(key.value)


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(
        type(value), "a number"
    )
