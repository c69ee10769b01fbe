"""Uploads of a new version beside earlier ones on S3: what an earlier version has is copied there, not sent again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import fsspec

from rcm_core.storage.hashes import kept_sha256
from rcm_core.storage.links import SMALL

KEY = "sha256"
"""Of an object's metadata."""
MOST_ASKED = 32
"""Objects of one size, newest first, whose hashes are asked for."""


class Earlier:
    """Large files of the versions beside ``root`` (``<target>/<name>/<version>``) on the S3 ``system``."""

    def __init__(self, system: fsspec.AbstractFileSystem, root: str) -> None:
        self.system, self.root = system, root

    def upload(self, path: Path, name: str, original: Path) -> None:
        """``name`` becomes an object with the bytes of ``path``; a large one that is there with its size is left alone.

        ``original`` has the same bytes: its hash is compared.
        """
        size = path.stat().st_size
        if size <= SMALL:
            self.system.put_file(str(path), name)
        elif not (self.system.exists(name) and self.system.size(name) == size):
            digest = kept_sha256(original)
            if not any(self._copy(twin, name, digest) for twin in self._of_size(size)):
                self.system.put_file(str(path), name, Metadata={KEY: digest})

    def _copy(self, twin: str, name: str, digest: str) -> bool:
        """Whether ``twin`` had the hash and was copied to ``name`` by the server."""
        try:
            if self.system.metadata(twin).get(KEY) != digest:
                return False
            # s3fs copies more than 5 GB in parts, which keep no metadata but this
            self.system.cp_file(twin, name, Metadata={KEY: digest})
        except (FileNotFoundError, PermissionError):  # removed in between, or we may write there but not read
            return False
        return True

    def _of_size(self, size: int) -> Iterator[str]:
        return iter(self._large.get(size, [])[:MOST_ASKED])

    @cached_property
    def _large(self) -> dict[int, list[str]]:
        """Large objects by size, newest first; listed when they are first asked for."""
        beside = self.root.rpartition("/")[0]
        self.system.invalidate_cache()
        found = self.system.find(beside, detail=True)
        large: dict[int, list[str]] = {}
        for name in sorted(found, key=lambda name: found[name]["LastModified"], reverse=True):
            if found[name]["size"] > SMALL:
                large.setdefault(found[name]["size"], []).append(name)
        return large
