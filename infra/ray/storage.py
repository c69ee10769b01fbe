"""Where Ray Train keeps checkpoints: in the live state, or in S3."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from rcm_core.storage import filesystem, storage_errors


class Checkpoints:
    """Of the trainings of one executor; ``RCM_CHECKPOINTS`` is ``s3://bucket/prefix``, or not set."""

    def __init__(self) -> None:
        self._remote: dict[Path, tuple[Any, str]] = {}

    def place(self, state: Path) -> dict[str, Any]:
        """Arguments of Ray's RunConfig: ``state`` itself, or the folder of its name below ``RCM_CHECKPOINTS``."""
        url = os.environ.get("RCM_CHECKPOINTS")
        if not url:
            return {"storage_path": str(state.parent)}
        system, root = filesystem(url, os.environ.get("AWS_ENDPOINT_URL"))
        self._remote[state] = system, f"{root}/{state.name}"
        return {"storage_path": root, "storage_filesystem": PyFileSystem(FSSpecHandler(system))}

    def name(self, state: Path) -> str:
        """Where the checkpoints of ``state`` are, for a sentence."""
        return f"s3://{self._remote[state][1]}" if state in self._remote else str(state)

    def drop(self) -> None:
        """Remove what lies in S3 of trainings whose live state is gone, because their outs are complete.

        The outs stay complete if S3 does not answer, so that is a line and no error.
        """
        for state in [s for s in self._remote if not s.exists()]:
            system, place = self._remote.pop(state)
            try:
                if system.exists(place):
                    system.rm(place, recursive=True)
            except storage_errors() as error:
                print(
                    f"s3://{place} could not be removed ({error}); the training needs it no more, remove it",
                    flush=True,
                )
