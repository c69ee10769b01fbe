"""What identifies a teacher that somebody else may change: a hash of its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rcm_core.errors import InputError
from rcm_core.storage import filesystem, sha256_folder


def reference_hash(uri: str, endpoint: str | None) -> str:
    """Hex digest of a teacher's content: bytes of a folder; names, sizes and etags of an ``s3://`` prefix."""
    if not uri.startswith("s3://"):
        folder = Path(uri)
        if not folder.is_dir():
            raise InputError(f"teacher {uri} is not a folder here; expected a folder or s3://bucket/prefix")
        return sha256_folder(folder)
    system, path = filesystem(uri, endpoint)
    objects = system.find(path, detail=True)
    if not objects:
        raise InputError(f"teacher {uri} is empty; expected a pipeline in the diffusers layout there")
    digest = hashlib.sha256()
    for name, facts in sorted(objects.items()):
        digest.update(f"{name}\0{facts['size']}\0{facts['ETag']}\n".encode())
    return digest.hexdigest()
