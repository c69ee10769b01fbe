"""Folders on S3, fetched once into the user's cache: ranges in parallel, resumed after an interruption.

``<cache>/fetched/<listing>`` is a folder as it was listed (address, names, sizes, ETags).
``<cache>/pipelines/<hash>`` links to the one with that content hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from filelock import FileLock

from rcm_core.errors import InputError
from rcm_core.storage.files import atomic_folder, failure, require_space, storage_errors
from rcm_core.storage.hashes import cache_root
from rcm_core.storage.links import place_folder
from rcm_core.storage.pipeline_files import objects, refuse_changed, signatures
from rcm_core.storage.s3 import filesystem, unbroken
from rcm_core.units import MIB

RANGE = 32 * MIB
"""Size of one request in bytes."""
READERS = 8
"""Number of parallel requests; each holds one range in memory."""
SAID_EVERY = 15.0
"""Seconds between two lines of progress."""
DONE = ".ranges"
"""File in a folder during its fetch, with a line for every range that is on disk."""

Listing = Mapping[str, tuple[int, Any]]
"""Size and ETag of every file, by name."""


class Range(NamedTuple):
    """A part of a file that one request reads."""

    name: str
    start: int
    end: int

    def line(self) -> str:
        return json.dumps([self.name, self.start])


def folder_of(
    given: str, endpoint: str | None, workspace: Path, cache: Path, otherwise: str, again: bool = True
) -> Path:
    """Return the folder ``given`` (without a leading slash in ``workspace``), or its fetched copy if it is on S3.

    ``cache`` remembers the first copy of a place on S3; ``again`` checks the place for changes. Raises
    InputError(``otherwise``) if it does not exist.
    """
    if "://" not in given:
        folder = workspace / given
        if not folder.is_dir():
            raise InputError(otherwise)
        return folder
    known = cache / hashlib.sha256(f"{given} {endpoint}".encode()).hexdigest()[:20]
    if again or not known.is_dir():
        link(known, fetch(given, endpoint, otherwise))
    return known.resolve()


def fetch(url: str, endpoint: str | None, otherwise: str) -> Path:
    """Return the cached folder of the pipeline files (``pipeline_files``) below ``url``; fetch it if necessary.

    Raises InputError(``otherwise``) if there is no such prefix; InputError if it changes meanwhile or does not fit on
    the disk; OutageError if it cannot be read to the end. Ranges fetched so far are kept, and the next call continues.
    """
    system, root = filesystem(url, endpoint)
    with unbroken(url):
        if not system.isdir(root):
            raise InputError(otherwise)
        listing = _listing(system, root)
    key = hashlib.sha256(json.dumps([url, endpoint, list(listing.items())]).encode()).hexdigest()[:32]
    place = cache_root() / "fetched" / key
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f"{key}.lock")):
        if not place.is_dir():
            partial = place.with_name(f"{key}.partial")
            _fetch_all(system, root, listing, partial, url)
            with unbroken(url):
                refuse_changed(listing, _listing(system, root), url)
            (partial / DONE).unlink(missing_ok=True)
            partial.replace(place)
    return place


def pipeline_with(digest: str) -> Path | None:
    """Return the fetched folder whose content hash is ``digest``; None if there is none."""
    place = cache_root() / "pipelines" / digest
    return place.resolve() if place.is_dir() else None


def remember(digest: str, folder: Path) -> None:
    """Record that the fetched ``folder`` has the content hash ``digest``."""
    link(cache_root() / "pipelines" / digest, folder)


def link(place: Path, folder: Path) -> None:
    """Make ``place`` a symlink to ``folder``, atomically."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)  # a copy, which versions before 1.1 kept here
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.absolute())
    temporary.replace(place)


def _listing(system: fsspec.AbstractFileSystem, root: str) -> Listing:
    system.invalidate_cache()
    return {name: (int(facts["size"]), facts.get("ETag")) for name, facts in objects(system, root).items()}


def _fetch_all(
    system: fsspec.AbstractFileSystem, root: str, listing: Listing, folder: Path, url: str
) -> None:
    """Fetch every file of ``listing`` into ``folder``, which may have some ranges already."""
    folder.mkdir(parents=True, exist_ok=True)
    done = set((folder / DONE).read_text().splitlines()) if (folder / DONE).exists() else set()
    ranges = [part for name, (size, _) in listing.items() for part in _ranges(name, size)]
    missing = [part for part in ranges if part.line() not in done]
    total = sum(size for size, _ in listing.values())
    left = sum(part.end - part.start for part in missing)
    require_space(folder, left)
    say = _sayer(url, total)

    def read(part: Range) -> Range:
        content = system.cat_file(f"{root}/{part.name}", start=part.start, end=part.end) if part.end else b""
        if len(content) != part.end - part.start:
            raise OSError(f"{part.name} ended after {part.start + len(content):,} bytes")
        _write(folder / part.name, part.start, content)
        return part

    try:
        with ThreadPoolExecutor(READERS) as pool, (folder / DONE).open("a") as log:
            try:
                for part in pool.map(read, missing):
                    log.write(f"{part.line()}\n")
                    log.flush()
                    left -= part.end - part.start
                    say(total - left)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except storage_errors() as error:
        raise failure(
            f"{url} could not be read to the end ({error}); {(total - left) / 1e9:.2f} of"
            f" {total / 1e9:.2f} GB are kept: run the stage again to continue",
            error,
        ) from error


def _ranges(name: str, size: int) -> Iterator[Range]:
    for start in range(0, max(size, 1), RANGE):
        yield Range(name, start, min(start + RANGE, size))


def _write(path: Path, start: int, content: bytes) -> None:
    """Write ``content`` at ``start`` of the file; it is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        view = memoryview(content)
        while view:
            written = os.pwrite(handle, view, start)
            start, view = start + written, view[written:]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sayer(url: str, total: int) -> Callable[[int], None]:
    """Return a function that prints the number of fetched bytes, at most every ``SAID_EVERY`` seconds."""
    last = time.monotonic()

    def say(there: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SAID_EVERY:
            last = time.monotonic()
            print(f"{url}: {there / 1e9:.2f} of {total / 1e9:.2f} GB fetched", flush=True)

    return say


def fetch_folder(url: str, endpoint: str | None, target: Path, otherwise: str) -> None:
    """Make ``target`` a folder with the pipeline files of the folder or prefix ``url``, linked where possible.

    Raises InputError(``otherwise``) if there is none; InputError if it changes meanwhile.
    """
    folder = fetch(url, endpoint, otherwise) if "://" in url else Path(url)
    if not folder.is_dir():
        raise InputError(otherwise)
    before = signatures(folder)
    with atomic_folder(target) as copy:
        place_folder(folder, copy)
        refuse_changed(before, signatures(folder), url)
