"""Folder of a workspace's teacher: ``runs/teacher/pipeline`` for the built-in one, its own place for an external one.

An external teacher is never copied. ``runs/teacher/teacher.json`` has its content hash, which identifies it on any
machine, and its source: a folder (without a leading slash in the workspace), or an ``s3://`` prefix that is fetched
into the user's cache under its content hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcm_core.errors import InputError
from rcm_core.pipelines.variants import plain_view
from rcm_core.storage.fetch import fetch, pipeline_with
from rcm_core.storage.files import sha256_folder
from rcm_core.storage.pipeline_files import require_index
from rcm_core.storage.run_folder import RELATIVE, RunFolder

TRAINED = "mini"


def pipeline_of(workspace: Path) -> Path:
    """Return the pipeline folder of ``workspace``'s teacher; InputError if it does not exist."""
    return _folder(workspace, RunFolder.of(workspace).teacher())


def verified_pipeline(workspace: Path) -> Path:
    """Return ``pipeline_of``; InputError unless its content has the hash that the teacher stage recorded.

    Cheap: hashes of unchanged files are cached (``hashes``).
    """
    facts: dict[str, Any] = RunFolder.of(workspace).teacher()
    folder = _folder(workspace, facts)
    digest = sha256_folder(folder)
    if digest != facts["hash"]:
        raise InputError(
            f"the teacher in {folder} has content hash {digest}, but {RELATIVE.teacher_file} was made from"
            f" {facts['hash']}; restore that teacher, or take the new one with `dvc repro --force teacher`"
        )
    return folder


def is_ours(facts: Mapping[str, Any]) -> bool:
    """Return whether the teacher of ``facts`` (teacher.json) lies in our files: trained here, or fetched from S3."""
    return facts["source"] == TRAINED or "://" in facts["source"]


def given_pipeline(source: str, endpoint: str | None, workspace: Path, variant: str | None = None) -> Path:
    """Return the pipeline folder that ``teacher.source`` names, fetched if it is on S3; InputError if there is none.

    With a ``variant``, the result is a folder of links that has those weights under plain names.
    """
    otherwise = (
        f"teacher.source {source!r} is neither {TRAINED!r} nor a folder that exists; give a folder or s3:// prefix in"
        " diffusers layout"
    )
    if "://" in source:
        folder = fetch(source, endpoint, otherwise)
    else:
        folder = workspace / source
        if not folder.is_dir():
            raise InputError(otherwise)
    require_index(folder, f"teacher.source {source!r}")
    return folder if variant is None else plain_view(folder, variant)


def _folder(workspace: Path, facts: dict[str, Any]) -> Path:
    source = facts["source"]
    if source == TRAINED:
        folder = RunFolder.of(workspace).teacher_pipeline
        require_index(folder, f"{folder} (`dvc repro teacher` makes it again)")
        return folder
    known = pipeline_with(facts["hash"]) if "://" in source else None
    return known or given_pipeline(source, facts.get("endpoint"), workspace, facts.get("variant"))
