"""S3 behind fsspec: one connection, retries after failures, one sentence for each error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from rcm_core.errors import InputError, one_line
from rcm_core.storage.files import failure, storage_errors

ATTEMPTS = 4
"""Attempts of botocore (mode standard: exponential backoff) for a request that fails or returns 5xx or 429."""
READ_ATTEMPTS = 3
"""Retries of s3fs for a response whose body breaks off, which botocore does not notice."""
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"


@contextmanager
def unbroken(place: str) -> Iterator[None]:
    """Turn a storage's errors in the block, after all retries, into InputError; FileNotFoundError is unchanged.

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
