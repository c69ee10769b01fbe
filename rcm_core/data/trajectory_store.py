"""Shards of teacher samples: safetensors files and one Parquet manifest with their checksums, local or on S3."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.storage.checked_json import fit, read
from rcm_core.storage.files import atomic, sha256, write_json
from rcm_core.storage.formats import parse_parquet, read_tensors
from rcm_core.storage.s3 import filesystem, unbroken
from rcm_core.storage.schemas import ShardFacts, StoreFacts

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.parquet"
COLUMNS = ("sample", "prompt", "shard", "row", "sha256")
PATTERNS = {"shard": r"shard_[0-9]{5,12}\.safetensors", "sha256": r"[0-9a-f]{64}", "prompt": r"(?s).*"}
"""Patterns of the texts in a manifest; they keep every shard inside its folder."""
REPAIR = "`dvc repro trajectories` makes it again"
REPAIR_REMOTE = (
    "`dvc repro --force --single-item trajectories` makes it again"  # DVC does not track files on S3
)


@dataclass(frozen=True)
class Place:
    """Place of the shards: a folder or ``s3://bucket/prefix`` with an optional endpoint."""

    url: str
    endpoint: str | None = None

    @property
    def remote(self) -> bool:
        """Return whether the place is not a folder of this machine."""
        return "://" in self.url

    def open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return file system and path; InputError if the place cannot be reached."""
        return filesystem(self.url, self.endpoint)


@lru_cache(maxsize=8)
def open_once(place: Place) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return ``place.open()``, cached per process: for places that are read in many small files."""
    return place.open()


def shard_name(index: int) -> str:
    """Return the name of shard ``index``, such as ``shard_00007.safetensors``."""
    return f"shard_{index:05d}.safetensors"


def read_finished(place: Place, name: str) -> dict[str, Any] | None:
    """Return the facts of shard ``name`` if it is complete and its bytes have the recorded checksum, else None."""
    system, root = place.open()
    facts, path = f"{root}/{name}.json", f"{root}/{name}"
    with unbroken(place.url):
        if not (system.exists(facts) and system.exists(path)):
            return None
        text, content = system.cat_file(facts), system.cat_file(path)
    try:
        known: dict[str, Any] = fit(ShardFacts, text.decode(), facts, "it is made again")
    except (InputError, UnicodeDecodeError):
        return None  # damaged by a killed run or the disk: the shard is generated again
    return known if hashlib.sha256(content).hexdigest() == known["sha256"] else None


def write_shard(
    place: Place, name: str, tensors: Mapping[str, Tensor], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write the shard, then its facts with the checksum; neither name is visible before its file is complete."""
    payload = save(dict(tensors), metadata={"format": "pt"})
    complete = {**facts, "shard": name, "sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload)}
    system, root = place.open()
    contents = {f"{root}/{name}": payload, f"{root}/{name}.json": json.dumps(complete).encode()}
    for path, content in contents.items():
        with unbroken(place.url):
            if place.remote:
                system.pipe_file(path, content)  # S3 writes an object completely or not at all
                continue
            with atomic(Path(path)) as temporary:
                temporary.write_bytes(content)
    return complete


def write_finite(
    place: Place, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Write the samples whose ``x0`` is finite, with their ``facts`` (by sample) and the number of the others."""
    keep = torch.isfinite(tensors["x0"].flatten(1)).all(dim=1)
    kept = [int(i) for i in torch.nonzero(keep).flatten()]
    whole: dict[str, Any] = {key: [values[i] for i in kept] for key, values in facts.items()}
    whole["nonfinite"] = len(keep) - len(kept)
    return write_shard(place, name, {k: v[keep].contiguous() for k, v in tensors.items()}, whole)


def write_manifest(path: Path, shards: list[dict[str, Any]]) -> pd.DataFrame:
    """Write a row per sample, in the order of ids: id, prompt, shard, row in it, the shard's checksum, and for imported
    samples the file.
    """
    import pandas as pd

    rows = [
        {"sample": sample, "prompt": prompt, "shard": s["shard"], "row": row, "sha256": s["sha256"]}
        | ({"file": s["files"][row]} if "files" in s else {})
        for s in sorted(shards, key=lambda s: s["shard"])
        for row, (sample, prompt) in enumerate(zip(s["samples"], s["prompts"]))
    ]
    frame = pd.DataFrame(rows)
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)
    return frame


def write_store(folder: Path, location: str, endpoint: str | None, real: bool = False) -> None:
    """Write ``folder/store.json``: the location of the manifest's shards, and whether their ``x0`` are real data."""
    facts: dict[str, Any] = {"location": location, "endpoint": endpoint}
    write_json(folder / "store.json", facts | {"real": True} if real else facts)


def read_manifest(path: Path) -> pd.DataFrame:
    """Read a manifest of ``write_manifest``; InputError if it is missing, damaged or has values that none has."""

    if not path.is_file():
        raise InputError(f"{path} is missing; {REPAIR}")
    frame = parse_parquet(path.read_bytes(), str(path), REPAIR)
    if flaw := _flaw(frame):
        raise InputError(f"{path} {flaw}; {REPAIR}")
    return frame


def _flaw(frame: pd.DataFrame) -> str | None:
    """Return the defect of a manifest as a predicate of a sentence, or None."""
    import pandas as pd

    if lacking := sorted({*COLUMNS} - set(frame.columns)):
        return f"lacks the column {lacking[0]}"
    if frame.empty:
        return "lists no sample"
    for column in ("sample", "row"):
        values = frame[column]
        if not pd.api.types.is_integer_dtype(values.dtype) or values.isna().any() or (values < 0).any():
            return f"has other values than numbers from 0 in the column {column}"
    for column, pattern in PATTERNS.items():
        other = [v for v in frame[column].unique() if not isinstance(v, str) or not re.fullmatch(pattern, v)]
        if other:
            return f"has {other[0]!r} in the column {column}"
    if (frame.groupby("shard")["sha256"].nunique() > 1).any() or frame.duplicated(["shard", "row"]).any():
        return "contradicts itself: a shard with two checksums, or a row that is listed twice"
    return None


def read_negative(path: Path) -> dict[str, Tensor]:
    """Return the negative prompt's condition; InputError if the file is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path} is missing; {REPAIR}")
    tensors: dict[str, Tensor] = read_tensors(path, REPAIR)
    if not tensors or not all(name.startswith("condition.") for name in tensors):
        raise InputError(f"{path} holds {sorted(tensors)}; expected the tensors of a condition: {REPAIR}")
    return tensors


def verify(path: Path, digest: str) -> Path:
    """Return ``path``; InputError unless its bytes have the manifest's checksum."""
    if not path.is_file():
        raise InputError(f"shard {path} is missing; {REPAIR}")
    _refuse_other(str(path), sha256(path), digest, REPAIR)
    return path


def download(place: Place, name: str, digest: str, cache: Path) -> Path:
    """Return a verified local copy of the object ``name``, cached in ``cache`` under its checksum."""
    path = cache / f"{digest}.safetensors"
    if path.is_file() and sha256(path) == digest:
        return path
    system, root = place.open()
    try:
        with unbroken(place.url):
            content = system.cat_file(f"{root}/{name}")
    except FileNotFoundError as error:
        raise InputError(f"shard {place.url}/{name} is missing; {REPAIR_REMOTE}") from error
    _refuse_other(f"{place.url}/{name}", hashlib.sha256(content).hexdigest(), digest, REPAIR_REMOTE)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return path


def _refuse_other(name: str, found: str, digest: str, repair: str) -> None:
    if found != digest:
        raise InputError(
            f"shard {name} is corrupt: its sha256 is {found[:12]}..., the manifest says {digest[:12]}...; {repair}"
        )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"shard {path} is not a safetensors file ({error}); {REPAIR}") from error


class Store:
    """Verified, random access to the samples of ``folder`` (the outputs of the trajectories stage)."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """Check every shard; those on S3 are fetched into ``cache`` first."""
        where = read(folder / "store.json", StoreFacts, "trajectories")
        place = Place(where["location"], where["endpoint"])
        self.real = where.get("real", False)
        self.frame = read_manifest(folder / MANIFEST)
        self.negative = read_negative(folder / "negative.safetensors")
        digests = {str(name): str(d) for name, d in self.frame.groupby("shard")["sha256"].first().items()}
        paths = {
            name: download(place, name, digest, cache / "shards")
            if place.remote
            else verify(folder / place.url / name, digest)
            for name, digest in digests.items()
        }
        self.handles = {name: _open(path) for name, path in paths.items()}
        self.names = sorted(next(iter(self.handles.values())).keys())
        self._refuse_rows()

    def _refuse_rows(self) -> None:
        """Raise InputError if a shard lacks tensors, or rows that the manifest lists."""
        for name, last in self.frame.groupby("shard")["row"].max().items():
            handle = self.handles[str(name)]
            if "x0" not in self.names or sorted(handle.keys()) != self.names:
                raise InputError(f"shard {name} holds {sorted(handle.keys())}; {REPAIR}")
            rows = min(handle.get_slice(tensor).get_shape()[0] for tensor in self.names)
            if last >= rows:
                raise InputError(f"{MANIFEST} lists row {last} of {name}, which has {rows}; {REPAIR}")

    def __len__(self) -> int:
        return len(self.frame)

    def sample(self, index: int, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the tensors of the ``index``-th sample of the manifest: all, or only ``names``."""
        row = self.frame.iloc[index]
        handle = self.handles[row["shard"]]
        return {name: handle.get_slice(name)[int(row["row"])] for name in names or self.names}
