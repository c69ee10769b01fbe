"""What a process has loaded and keeps for its next jobs: one of each kind, and the old one is freed first."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch

from rcm_core.storage.pipeline_files import signatures

Loaded = TypeVar("Loaded")


class Kept:
    """The last student, the last teacher, the last codec, ..., each with the key of what it was loaded from."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[Hashable, Any]] = {}

    def get(self, kind: str, key: Hashable, load: Callable[[], Loaded]) -> Loaded:
        """The ``kind`` that was loaded for ``key``; ``load()`` if another was, which is freed first."""
        if kind not in self._kinds or self._kinds[kind][0] != key:
            self.forget(kind)
            self._kinds[kind] = key, load()
        found: Loaded = self._kinds[kind][1]
        return found

    def forget(self, kind: str) -> None:
        """Free what is kept of ``kind``."""
        if self._kinds.pop(kind, None) is not None:
            gc.collect()  # modules refer to themselves through their hooks
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def state_of(folder: Path) -> Hashable:
    """Sizes, times of change and inodes of the files in ``folder``: another state is loaded again."""
    return tuple(signatures(folder).items()) if folder.is_dir() else ()
