"""Damages of files, by kind: each is a function of the file's bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pandas as pd

Damage = Callable[[bytes], bytes]
DEEP = 100_000


def json_damages(content: bytes, other: bytes) -> dict[str, Damage]:
    """Return damages of a JSON file; ``other`` is the file of another stage."""
    value = json.loads(content)
    found: dict[str, Damage] = {
        "empty": lambda _: b"",
        "truncated": lambda text: text[: len(text) // 2],
        "not JSON": lambda _: b"not JSON",
        "null": lambda _: b"null",
        "a number": lambda _: b"7",
        "a text": lambda _: b'"text"',
        "an empty object": lambda _: b"{}",
        "an empty list": lambda _: b"[]",
        "nested deeply": lambda _: b"[" * DEEP + b"]" * DEEP,
        "UTF-16": lambda text: text.decode().encode("utf-16"),
        "Latin-1": lambda _: '{"é": 1}'.encode("latin-1"),
        "zeros": lambda text: bytes(len(text)),
        "a binary file": lambda _: bytes(range(256)) * 8,
        "another stage's": lambda _: other,
        "followed by rubbish": lambda text: text + b"}{",
    }
    if isinstance(value, dict):
        first = sorted(value)[0]
        found["a key twice"] = lambda text: text.replace(b"{", b'{"' + first.encode() + b'": 1, ', 1)
        found["NaN"] = lambda text: text.replace(b"{", b'{"also": NaN, ', 1)
        found["a number beyond float64"] = lambda text: text.replace(b"{", b'{"also": 1e999, ', 1)
    return found


def key_damages(content: bytes, keys: tuple[str, ...]) -> dict[str, Damage]:
    """Return damages with keys that are missing or have a wrong type."""
    value = json.loads(content)
    found: dict[str, Damage] = {}
    for key in keys:
        without = {k: v for k, v in value.items() if k != key}
        found[f"{key} missing"] = _always(without)
        found[f"{key} of a wrong type"] = _always(
            value | {key: 1 if isinstance(value[key], (str, dict, list)) else "x"}
        )
    return found


def table_damages(content: bytes, column: str) -> dict[str, Damage]:
    """Return damages of a Parquet file whose ``column`` is required."""
    frame = pd.read_parquet(io.BytesIO(content))
    return {
        "empty": lambda _: b"",
        "truncated": lambda data: data[: len(data) // 2],
        "four bytes": lambda _: b"PAR1",
        "a text": lambda _: b"split,prompt\ntrain,a seven\n",
        "JSON": lambda _: b"{}",
        "without rows": lambda _: _parquet(frame.iloc[:0]),
        f"without {column}": lambda _: _parquet(frame.drop(columns=column)),
        f"{column} of numbers": lambda _: _parquet(frame.assign(**{column: 1})),
        f"{column} missing in a row": lambda _: _parquet(
            frame.assign(**{column: [None, *frame[column][1:]]})
        ),
        "one other column": lambda _: _parquet(pd.DataFrame({"a": [1]})),
    }


def manifest_damages(content: bytes) -> dict[str, Damage]:
    """Return damages with values that no manifest has."""
    frame = pd.read_parquet(io.BytesIO(content))
    changes: dict[str, dict[str, Any]] = {
        "a shard outside its folder": {"shard": "../../etc/passwd"},
        "an absolute shard": {"shard": "/etc/passwd"},
        "a row that is too large": {"row": [10**6, *frame["row"][1:]]},
        "a negative row": {"row": [-1, *frame["row"][1:]]},
        "rows of texts": {"row": "one"},
        "a row twice": {"row": 0},
        "another checksum": {"sha256": "0" * 64},
        "a checksum of texts": {"sha256": "abc"},
        "samples of fractions": {"sample": 0.5},
        "a shard that is missing": {"shard": "shard_99999.safetensors"},
    }
    return {name: _as_parquet(frame.assign(**change)) for name, change in changes.items()}


TENSOR_DAMAGES: dict[str, Damage] = {
    "empty": lambda _: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "a text": lambda _: b"not safetensors at all",
    "a header beyond the file": lambda _: (2**40).to_bytes(8, "little") + b"{}",
    "a header that is not JSON": lambda _: (4).to_bytes(8, "little") + b"abcd",
    "no tensors": lambda _: (2).to_bytes(8, "little") + b"{}",
}
CURVE_DAMAGES: dict[str, Damage] = {
    "empty": lambda _: b"",
    "a JSON": lambda _: b"{}",
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "without step": lambda data: data.replace(b"step", b"other", 1),
    "texts": lambda data: data + b"a,b" + b"," * (data.split(b"\n")[0].count(b",") - 1) + b"\n",
    "NaN": lambda data: data + b"nan" + b"," * data.split(b"\n")[0].count(b",") + b"\n",
    "ragged": lambda data: data + b"1,2\n",
    "binary": lambda _: bytes(range(256)),
}


def _always(value: Any) -> Damage:
    text = json.dumps(value).encode()
    return lambda _: text


def _as_parquet(frame: pd.DataFrame) -> Damage:
    return lambda _: _parquet(frame)


def _parquet(frame: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    frame.to_parquet(stream, index=False)
    return stream.getvalue()
