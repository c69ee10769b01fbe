"""On-disk cache of prompt embeddings. Only the first worker that needs a prompt loads the text encoder.

Every prompt is encoded alone, so that its embedding does not depend on the other prompts of a call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rcm_core.code_hash import code_hash
from rcm_core.protocols import Condition
from rcm_core.storage.files import atomic
from rcm_core.storage.pipeline_files import pipeline_files

LARGE = 2**26
"""Bytes of a text encoder above which loading it takes longer than loading its cached results."""
ROWS = ".rows"


def texts_of(pipeline: Path, cache: Path, family: str, digest: str) -> str | None:
    """Return the cache folder of ``pipeline``, whose content hash is ``digest``; None if its text encoder is small.

    The folder's name changes with the family's code and the versions of the text libraries.
    """
    files = (p for part in pipeline.glob("text_encoder*") for p in pipeline_files(part).values())
    if sum(p.stat().st_size for p in files) < LARGE:
        return None
    code = code_hash(f"rcm_core.models.{family}", {})
    versions = " ".join(version(name) for name in ("transformers", "diffusers", "ftfy"))
    key = hashlib.sha256(f"{digest} {code} {versions}".encode()).hexdigest()
    return str(cache / "texts" / key[:20])


def encode_cached(
    folder: Path, prompts: Sequence[str], encode: Callable[[Sequence[str]], Condition]
) -> dict[str, Tensor]:
    """Return the conditions of ``prompts``, [N, ...] on the CPU; those not yet in ``folder`` are encoded and stored."""
    rows = [
        _one(folder / f"{hashlib.sha256(p.encode()).hexdigest()[:32]}.safetensors", p, encode)
        for p in prompts
    ]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _one(path: Path, prompt: str, encode: Callable[[Sequence[str]], Condition]) -> dict[str, Tensor]:
    if not path.is_file():
        with atomic(path) as temporary:
            save_file(_trim(encode([prompt])), temporary)
    try:
        kept = load_file(path)
    except SafetensorError:  # a cache: what is damaged is made again
        path.unlink()
        return _one(path, prompt, encode)
    return {
        name: _whole(value, kept.get(name + ROWS)) for name, value in kept.items() if not name.endswith(ROWS)
    }


def _trim(condition: Condition) -> dict[str, Tensor]:
    """Return tensors [1, L, D] without the zeros behind the last token, and beside each its original L."""
    trimmed: dict[str, Tensor] = {}
    for name, value in condition.items():
        trimmed[name] = value.contiguous()
        if value.ndim == 3:
            used = value[0].ne(0).any(-1).nonzero()
            last = int(used[-1]) + 1 if len(used) else 0
            trimmed |= {name: value[:, :last].contiguous(), name + ROWS: torch.tensor(value.shape[1])}
    return trimmed


def _whole(value: Tensor, rows: Tensor | None) -> Tensor:
    missing = 0 if rows is None else int(rows) - value.shape[1]
    return torch.nn.functional.pad(value, (0, 0, 0, missing)) if missing else value
