"""Atomic files and folders, JSON and checksums; a half-written file is never seen under its name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rcm_core.errors import REMEDIES, InputError, OutageError
from rcm_core.storage.formats import parse_json, read_text
from rcm_core.storage.hashes import kept_sha256
from rcm_core.storage.hashes import sha256 as sha256
from rcm_core.storage.pipeline_files import in_order, pipeline_files
from rcm_core.units import MIB

LASTING = {*REMEDIES, errno.EINVAL, errno.ENOSYS, errno.EMSGSIZE} - {errno.EIO}
"""Error numbers of permanent failures: a retry would fail again."""


def sha256_folder(folder: Path) -> str:
    """Return the hex digest of names and bytes of the files of ``folder`` (``pipeline_files``), in any order on disk.

    Hashes of large files are cached (``hashes``), so unchanged files are not read again.
    """
    return sha256_files(pipeline_files(folder))


def sha256_files(files: Mapping[str, Path]) -> str:
    """Return the ``sha256_folder`` of a folder with the contents of ``files`` under these names."""
    digest = hashlib.sha256()
    for name, path in ((name, files[name]) for name in in_order(files)):
        digest.update(f"{name}\0{kept_sha256(path)}\n".encode())
    return digest.hexdigest()


def _hidden_prefix(path: Path) -> str:
    """Return the prefix of ``path``'s temporary name; short, because the full name has a length limit."""
    return f".{path.name[:40]}."


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Turn safetensors' errors for a full disk and similar ones into OSError with its number."""
    try:
        yield
    except SafetensorError as error:
        match = re.search(r"os error (\d+)", str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes ``path`` (fsync, rename) if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_hidden_prefix(path))
    os.close(handle)
    temporary = Path(name)
    try:
        with _system_errors(path):
            yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that replaces ``path`` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_hidden_prefix(path)))
    try:
        with _system_errors(path):
            yield temporary
        temporary.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def json_text(value: Any) -> str:
    """Return ``value`` as sorted, indented JSON that ends in a newline: the same value gives the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``json_text(value)`` to ``path``, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json_text(value))


def read_json(path: Path, made_by: str) -> Any:
    """Return the JSON in ``path``; InputError names the stage that writes it."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with `dvc repro {made_by}`")
    remedy = f"`dvc repro {made_by}` makes it again"
    return parse_json(read_text(path, remedy), str(path), remedy)


def require_space(folder: Path, needed: int) -> None:
    """Raise InputError if fewer than ``needed`` bytes are free on the disk of ``folder``, which need not exist."""
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"no space: {folder} needs {needed / MIB:.1f} MiB and {free / MIB:.1f} MiB are free;"
            " free some, or choose another target"
        )


def require_target(target: str, workspace: Path, key: str) -> None:
    """Raise InputError unless ``target``, the value of the setting ``key``, is on S3 or a writable folder."""
    if "://" in target:
        return
    if not target.strip() or "\0" in target:
        raise InputError(f"{key} = {target!r} names no folder; name one, or set it to null")
    try:
        folder = workspace / target
        above = next(p for p in [folder, *folder.absolute().parents] if os.path.lexists(p))
    except OSError as error:
        raise InputError(
            f"{key} = {target[:80]!r}... cannot be a folder ({error.strerror}); name another"
        ) from error
    if not above.is_dir():
        raise InputError(f"{key} = {target!r}: {above} is not a folder; name another")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"{key} = {target!r}: {above} cannot be written; correct its permissions, or name another"
        )


def storage_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of S3 and file systems."""
    from botocore.exceptions import BotoCoreError
    from s3fs.core import S3_RETRYABLE_ERRORS

    return OSError, BotoCoreError, *S3_RETRYABLE_ERRORS


def failure(sentence: str, error: BaseException) -> InputError:
    """Return the error with ``sentence`` for a storage's ``error``: OutageError if that may be temporary."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import FlexibleChecksumError, IncompleteReadError
    from s3fs.core import S3_RETRYABLE_ERRORS

    damaged = FlexibleChecksumError, IncompleteReadError
    lasting = isinstance(error, OSError) and error.errno in LASTING
    passing = isinstance(error, (OSError, NoConnection, *damaged, *S3_RETRYABLE_ERRORS))
    return OutageError(sentence) if passing and not lasting else InputError(sentence)
