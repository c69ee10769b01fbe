"""Hash by which ``watch_teacher`` notices that an external teacher changed; on S3 it does not read the bytes.

The content hash that identifies a teacher in a run is in teacher.json (``rcm_core/stages/teacher.py``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from rcm_core.errors import InputError
from rcm_core.storage.files import sha256_folder
from rcm_core.storage.pipeline_files import objects, refuse_changed, require_index, signatures
from rcm_core.storage.s3 import filesystem, unbroken


def reference_hash(uri: str, endpoint: str | None) -> str:
    """Return the hex digest of a teacher's pipeline files: their bytes in a folder; names, sizes and ETags in S3.

    Raises InputError if ``uri`` has no pipeline in diffusers layout (``model_index.json``), or if the folder changes
    during hashing.
    """
    if not uri.startswith("s3://"):
        folder = Path(uri)
        if not folder.is_dir():
            raise InputError(
                f"teacher {uri} is not a folder on this machine; give a folder or s3://bucket/prefix"
            )
        require_index(folder, uri)
        before = signatures(folder)
        digest = sha256_folder(folder)
        refuse_changed(before, signatures(folder), uri)
        return digest
    system, path = filesystem(uri, endpoint)
    with unbroken(uri):
        listed = objects(system, path)
    if not listed:
        raise InputError(
            f"teacher {uri} is empty; expected a pipeline in diffusers layout; correct the path or upload the pipeline"
        )
    found = hashlib.sha256()
    for name, facts in listed.items():
        found.update(f"{name}\0{facts['size']}\0{facts['ETag']}\n".encode())
    return found.hexdigest()
