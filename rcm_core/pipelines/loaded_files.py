"""Files of a pipeline that its ``from_pretrained`` loads: no other formats and variants of the same weights, and no
folders that model_index.json does not name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

FORMATS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".msgpack",
    ".h5",
    ".onnx",
    ".onnx_data",
    ".pb",
    ".gguf",
)
"""Suffixes of weight files; the first is preferred."""
KEPT_AT_ROOT = ("model_index.json", "LICENSE", "NOTICE")
INDEX = re.compile(r"\.index(?:\.(\w+))?\.json$")
SHARD = re.compile(r"-\d{5}-of-\d{5}")


def loaded_files(names: Collection[str], index: Mapping[str, Any], variant: str | None = None) -> list[str]:
    """Return those of ``names`` (relative, with slashes) that ``from_pretrained`` loads, and the licence, in order.

    ``index`` is the content of model_index.json; ``variant`` is diffusers' (``fp16``), None: plain names.
    """
    parts = {name for name, made_of in index.items() if isinstance(made_of, list) and any(made_of)}
    loaded: set[str] = {n for n in names if "/" not in n and n.startswith(KEPT_AT_ROOT)}
    for part in parts:
        inside = [name for name in names if name.startswith(f"{part}/")]
        loaded |= set(_of_part(inside, variant))
    return [name for name in names if name in loaded]


def _of_part(names: list[str], variant: str | None) -> list[str]:
    """Return the small files of a part, and its weights in one format and variant."""
    weights = [name for name in names if name.endswith(FORMATS)]
    indices = {name: match[1] for name in names if (match := INDEX.search(name))}
    small = [name for name in names if name not in weights and name not in indices]
    best = next((f for f in FORMATS if any(w.endswith(f) for w in weights)), "")
    best_weights = [w for w in weights if w.endswith(best)]
    wanted = [w for w in best_weights if _variant(w, best) == variant]
    if not wanted:  # a variant that only other parts have
        wanted = [w for w in best_weights if _variant(w, best) is None] or best_weights
    shown = _variant(wanted[0], best) if wanted else None
    sharded = [name for name, variant in indices.items() if f"{best}.index" in name and variant == shown]
    if sharded:
        wanted = [w for w in wanted if SHARD.search(w)]
    return [*small, *sharded, *wanted]


def _variant(name: str, ending: str) -> str | None:
    """Return the variant: ``fp16`` for ``model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors``; None
    for plain names.
    """
    stem = SHARD.sub("", PurePosixPath(name).name.removesuffix(ending))
    return stem.rsplit(".", 1)[1] if "." in stem else None
