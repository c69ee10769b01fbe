"""Atomic files and checksums, local or s3:// (fsspec); a half-written file is never seen under its name."""

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

import fsspec
from safetensors import SafetensorError

from rcm_core.errors import REMEDIES, InputError, OutageError, one_line
from rcm_core.formats import parse_json, read_text
from rcm_core.hashes import kept_sha256
from rcm_core.hashes import sha256 as sha256
from rcm_core.links import place_folder
from rcm_core.pipeline_files import in_order, pipeline_files, refuse_changed, signatures

ATTEMPTS = 4
"""Times that botocore (mode standard: exponential backoff) sends a request that fails or is answered with 5xx, 429."""
READ_ATTEMPTS = 3
"""Times that s3fs asks again for an answer whose body breaks off, which botocore does not see."""
LASTING = {*REMEDIES, errno.EINVAL, errno.ENOSYS, errno.EMSGSIZE} - {errno.EIO}
"""Numbers of errors that the same request would meet again at any time."""
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"


def sha256_folder(folder: Path) -> str:
    """Hex digest of names and bytes of the files of ``folder`` (``pipeline_files``), whatever the order on disk.

    Hashes of large files are kept (``hashes``), so what did not change is not read again.
    """
    return sha256_files(pipeline_files(folder))


def sha256_files(files: Mapping[str, Path]) -> str:
    """``sha256_folder`` of a folder that has, under these names, what is in these files."""
    digest = hashlib.sha256()
    for name, path in ((name, files[name]) for name in in_order(files)):
        digest.update(f"{name}\0{kept_sha256(path)}\n".encode())
    return digest.hexdigest()


def _hidden(path: Path) -> str:
    """How the temporary name of ``path`` begins; short, for the whole name must fit."""
    return f".{path.name[:40]}."


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Let safetensors report a full disk and its like as everything else does: OSError with its number."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` (fsync, rename) if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_hidden(path))
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
    """A temporary folder beside ``path`` that replaces ``path`` if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_hidden(path)))
    try:
        with _system_errors(path):
            yield temporary
        temporary.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def json_text(value: Any) -> str:
    """Sorted, indented, ending in a newline: the same value is the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """``json_text(value)`` in ``path``, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json_text(value))


def read_json(path: Path, made_by: str) -> Any:
    """The JSON in ``path``; InputError names the stage that writes it."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with `dvc repro {made_by}`")
    remedy = f"`dvc repro {made_by}` makes it again"
    return parse_json(read_text(path, remedy), str(path), remedy)


def require_space(folder: Path, needed: int) -> None:
    """InputError if fewer than ``needed`` bytes are free where ``folder`` is or will be."""
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"no space: {folder} needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free;"
            " free some, or choose another target"
        )


def require_target(target: str, workspace: Path, key: str) -> None:
    """InputError unless ``target``, what the setting ``key`` names, is on S3 or a folder that can be written."""
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
    """What S3 and file systems raise."""
    from botocore.exceptions import BotoCoreError
    from s3fs.core import S3_RETRYABLE_ERRORS

    return OSError, BotoCoreError, *S3_RETRYABLE_ERRORS


def failure(sentence: str, error: BaseException) -> InputError:
    """``sentence`` as the error to raise for what a storage raised: OutageError if it may pass by itself."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import FlexibleChecksumError, IncompleteReadError
    from s3fs.core import S3_RETRYABLE_ERRORS

    damaged = FlexibleChecksumError, IncompleteReadError
    lasting = isinstance(error, OSError) and error.errno in LASTING
    passing = isinstance(error, (OSError, NoConnection, *damaged, *S3_RETRYABLE_ERRORS))
    return OutageError(sentence) if passing and not lasting else InputError(sentence)


@contextmanager
def unbroken(place: str) -> Iterator[None]:
    """Turn what a storage refuses in the block, after all retries, into InputError; a missing file stays what it is.

    The InputError is an OutageError if the storage may answer later.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise InputError(
            f"{place} refused access ({one_line(error)}); check the permissions, then run it again"
        ) from error
    except storage_errors() as error:
        raise failure(
            f"{place} failed ({one_line(error)}); when it answers and has space, run the command again to continue",
            error,
        ) from error


def filesystem(url: str, endpoint: str | None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of ``url`` and the path in it, after one real request.

    Credentials come from the environment (AWS_ACCESS_KEY_ID, ...). OutageError if it cannot be reached, InputError if
    it refuses us.
    """
    scheme = url.split("://")[0] if "://" in url else None
    if scheme not in (None, "s3"):
        raise InputError(f"{url}: expected a folder or s3://bucket/prefix, got {scheme}://")
    if scheme is None:
        return fsspec.filesystem("file"), str(Path(url).absolute())
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    system = fsspec.filesystem(
        "s3",
        endpoint_url=endpoint,
        config_kwargs={
            "connect_timeout": 5,
            "read_timeout": 60,
            "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        },
    )
    system.retries = READ_ATTEMPTS
    path = url.removeprefix("s3://").rstrip("/")
    bucket = path.split("/")[0]
    where = f"s3://{bucket} at {endpoint or 'the default endpoint'}"
    try:
        system.ls(bucket, refresh=True)
    except PermissionError as error:
        raise InputError(f"{where} refused the credentials ({error}); {CREDENTIALS}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InputError(f"{where} needs credentials and there are none; {CREDENTIALS}") from error
    except FileNotFoundError as error:
        raise InputError(f"bucket {where} does not exist; create it or name another") from error
    except storage_errors() as error:
        raise failure(
            f"{where} cannot be reached ({one_line(error)}); check the endpoint, or wait until it answers",
            error,
        ) from error
    return system, path


def fetch_folder(url: str, endpoint: str | None, target: Path, otherwise: str) -> None:
    """``target`` becomes a folder with the pipeline files of the folder or prefix ``url``, shared where disks can.

    InputError(``otherwise``) if there is none; InputError if it changes meanwhile.
    """
    from rcm_core.fetch import fetch  # which stores what it fetches, so it imports this module

    folder = fetch(url, endpoint, otherwise) if "://" in url else Path(url)
    if not folder.is_dir():
        raise InputError(otherwise)
    before = signatures(folder)
    with atomic_folder(target) as copy:
        place_folder(folder, copy)
        refuse_changed(before, signatures(folder), url)
