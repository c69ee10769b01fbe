"""Storage of Ray Train's checkpoints: in the live state, or in S3."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from rcm_core.storage.files import storage_errors
from rcm_core.storage.s3 import filesystem

if TYPE_CHECKING:
    from ray.train import Checkpoint


@dataclass(frozen=True)
class Place:
    """Location of the checkpoints of one training."""

    name: str
    """Folder or ``s3://`` prefix, for messages."""
    root: str = ""
    """Path in ``system``."""
    system: Any = None
    """fsspec file system; None: Ray copies to the folder itself."""

    def upload(self, checkpoint: Checkpoint, folder: str) -> Checkpoint:
        """Copy ``checkpoint`` to ``folder`` on S3; errors of S3 are raised.

        Ray's own copy uses pyarrow's copy_files, which hides that S3 refused a file on close. A checkpoint without
        that file would count as complete.
        """
        from ray.train import Checkpoint

        source, target = Path(checkpoint.path), f"{self.root}/{folder}"
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            self.system.put_file(str(path), f"{target}/{path.relative_to(source).as_posix()}")
        return Checkpoint(target, PyFileSystem(FSSpecHandler(self.system)))

    def ask(self) -> None:
        """Look up each checkpoint, as Ray's controller does when it starts; errors of S3 are raised."""
        self.system.invalidate_cache()
        if self.system.exists(self.root):
            for folder in self.system.ls(self.root, refresh=True):
                self.system.ls(folder, refresh=True)


class Checkpoints:
    """Checkpoints of one executor's trainings; ``RCM_CHECKPOINTS`` is ``s3://bucket/prefix``, or not set."""

    def __init__(self) -> None:
        self._remote: dict[Path, Place] = {}

    def place(self, state: Path) -> tuple[Place, dict[str, Any]]:
        """Return ``state`` or the folder of its name below ``RCM_CHECKPOINTS``, and arguments of Ray's RunConfig."""
        url = os.environ.get("RCM_CHECKPOINTS")
        if not url:
            return Place(str(state)), {"storage_path": str(state.parent)}
        system, root = filesystem(url, os.environ.get("AWS_ENDPOINT_URL"))
        place = Place(f"{url.rstrip('/')}/{state.name}", f"{root}/{state.name}", system)
        self._remote[state] = place
        return place, {"storage_path": root, "storage_filesystem": PyFileSystem(FSSpecHandler(system))}

    def drop(self) -> None:
        """Remove from S3 the checkpoints of trainings whose live state is gone because their outs are complete.

        If S3 does not answer, the outs are still complete, so that is logged and raises nothing.
        """
        for state in [s for s in self._remote if not s.exists()]:
            place = self._remote.pop(state)
            try:
                if place.system.exists(place.root):
                    place.system.rm(place.root, recursive=True)
            except storage_errors() as error:
                print(
                    f"{place.name} could not be removed ({error}); no training needs it, so remove it yourself",
                    flush=True,
                )
