"""Where a workspace's teacher lies: a teacher trained here in ``runs/teacher/pipeline``, any other where it is given.

A given teacher is never copied. ``runs/teacher/teacher.json`` has its content hash, which identifies it on any machine,
and its source, from which the folder follows: a folder (without a leading slash in the workspace), or an ``s3://``
prefix that is kept in the user's cache under its content hash.
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
    """The folder of the pipeline of ``workspace``'s teacher; InputError if it is not there."""
    return _folder(workspace, RunFolder.of(workspace).teacher())


def verified_pipeline(workspace: Path) -> Path:
    """``pipeline_of``; InputError unless its content has the hash that the teacher stage recorded.

    Cheap: hashes of files that did not change are kept (``hashes``).
    """
    facts: dict[str, Any] = RunFolder.of(workspace).teacher()
    folder = _folder(workspace, facts)
    found = sha256_folder(folder)
    if found != facts["hash"]:
        raise InputError(
            f"the teacher in {folder} has content hash {found}, but {RELATIVE.teacher_file} was made from"
            f" {facts['hash']}; restore that teacher, or take the new one with `dvc repro --force teacher`"
        )
    return folder


def is_ours(facts: Mapping[str, Any]) -> bool:
    """Whether the teacher of teacher.json's ``facts`` lies in files that we wrote: trained here, or fetched from S3."""
    return facts["source"] == TRAINED or "://" in facts["source"]


def given_pipeline(source: str, endpoint: str | None, workspace: Path, variant: str | None = None) -> Path:
    """The pipeline's folder that ``teacher.source`` names, fetched if it is on S3; InputError if there is none.

    With a ``variant`` of its weights: a folder of links that has them under plain names.
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
