"""Shards of teacher samples: safetensors files and one Parquet manifest with their checksums, local or on S3."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.storage import atomic, filesystem, read_json, sha256, write_json

MANIFEST = "manifest.parquet"
REPAIR = "`dvc repro trajectories` makes it again (on s3: remove it there and use `dvc repro --force trajectories`)"


@dataclass(frozen=True)
class Place:
    """Where shards lie: a folder or ``s3://bucket/prefix`` with an optional endpoint."""

    url: str
    endpoint: str | None = None

    def open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """File system and path; InputError if it cannot be reached."""
        return filesystem(self.url, self.endpoint)


def shard_name(index: int) -> str:
    """``shard_00007.safetensors``."""
    return f"shard_{index:05d}.safetensors"


def finished(place: Place, name: str) -> dict[str, Any] | None:
    """Facts of shard ``name`` if it is complete and its bytes have the recorded checksum, else None."""
    system, root = place.open()
    facts, path = f"{root}/{name}.json", f"{root}/{name}"
    if not (system.exists(facts) and system.exists(path)):
        return None
    known: dict[str, Any] = json.loads(system.cat_file(facts))
    return known if hashlib.sha256(system.cat_file(path)).hexdigest() == known["sha256"] else None


def write_shard(place: Place, name: str, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> dict[str, Any]:
    """Writes the shard, then its facts with the checksum; nothing is seen under its name before it is whole."""
    payload = save(dict(tensors), metadata={"format": "pt"})
    complete = {**facts, "shard": name, "sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload)}
    system, root = place.open()
    for path, content in ((f"{root}/{name}", payload), (f"{root}/{name}.json", json.dumps(complete).encode())):
        if "://" in place.url:
            system.pipe_file(path, content)  # an S3 object appears whole or not at all
        else:
            with atomic(Path(path)) as temporary:
                temporary.write_bytes(content)
    return complete


def write_manifest(path: Path, shards: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per sample, in the order of sample ids: id, prompt, shard, row in it, the shard's checksum."""
    rows = [
        {"sample": sample, "prompt": prompt, "shard": s["shard"], "row": row, "sha256": s["sha256"]}
        for s in sorted(shards, key=lambda s: s["shard"])
        for row, (sample, prompt) in enumerate(zip(s["samples"], s["prompts"]))
    ]
    frame = pd.DataFrame(rows)
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)
    return frame


def write_store(folder: Path, location: str, endpoint: str | None) -> None:
    """Says in ``folder/store.json`` where the shards of the manifest lie."""
    write_json(folder / "store.json", {"location": location, "endpoint": endpoint})


class Store:
    """Verified, random access to the samples of ``folder`` (the outputs of the trajectories stage)."""

    def __init__(self, folder: Path, cache: Path) -> None:
        where = read_json(folder / "store.json", "trajectories")
        self.frame = pd.read_parquet(folder / MANIFEST)
        self.negative = load_file(folder / "negative.safetensors")
        remote = "://" in where["location"]
        self.root = cache / "shards" if remote else folder / where["location"]
        for name, digest in self.frame.groupby("shard")["sha256"].first().items():
            if remote:
                self._download(Place(where["location"], where["endpoint"]), str(name), str(digest))
            self._verify(self.root / str(name), str(digest))
        self.handles = {n: safe_open(self.root / n, "pt") for n in self.frame["shard"].unique()}
        first = next(iter(self.handles.values()))
        self.names = sorted(first.keys())

    def __len__(self) -> int:
        return len(self.frame)

    def _download(self, place: Place, name: str, digest: str) -> None:
        path = self.root / name
        if path.is_file() and sha256(path) == digest:
            return
        system, root = place.open()
        with atomic(path) as temporary:
            try:
                temporary.write_bytes(system.cat_file(f"{root}/{name}"))
            except FileNotFoundError as error:
                raise InputError(f"shard {place.url}/{name} is missing; {REPAIR}") from error

    def _verify(self, path: Path, digest: str) -> None:
        if not path.is_file():
            raise InputError(f"shard {path} is missing; {REPAIR}")
        found = sha256(path)
        if found != digest:
            raise InputError(
                f"shard {path} is corrupt: its sha256 is {found[:12]}..., the manifest says {digest[:12]}...; {REPAIR}"
            )

    def sample(self, index: int) -> dict[str, Tensor]:
        """All tensors of the ``index``-th sample of the manifest."""
        row = self.frame.iloc[index]
        handle = self.handles[row["shard"]]
        return {name: handle.get_slice(name)[int(row["row"])] for name in self.names}


