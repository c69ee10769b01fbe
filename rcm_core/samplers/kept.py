"""Process-wide cache of loaded networks: one of each kind, which is freed before another is loaded."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch

from rcm_core.storage.pipeline_files import signatures

Loaded = TypeVar("Loaded")


class Kept:
    """Cache of the last student, teacher, codec and so on, each with the key of its source."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[Hashable, Any]] = {}

    def get(self, kind: str, key: Hashable, load: Callable[[], Loaded]) -> Loaded:
        """Return the ``kind`` that was loaded for ``key``; otherwise free the cached one and call ``load()``."""
        if kind not in self._kinds or self._kinds[kind][0] != key:
            self.forget(kind)
            self._kinds[kind] = key, load()
        loaded: Loaded = self._kinds[kind][1]
        return loaded

    def forget(self, kind: str) -> None:
        """Free the cached object of ``kind``."""
        if self._kinds.pop(kind, None) is not None:
            gc.collect()  # modules refer to themselves through their hooks
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def state_of(folder: Path) -> Hashable:
    """Return sizes, modification times and inodes of the files in ``folder``, the cache key of its content."""
    return tuple(signatures(folder).items()) if folder.is_dir() else ()
