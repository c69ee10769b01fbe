"""Cached SHA-256 of large files: a file is read again only if its size, modification time or inode differ.

The cache is ``<cache>/hashes``, one JSON file per folder. It belongs to the user, not to a checkout (``RCM_CACHE``).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

LARGE = 2**20
"""Smallest file in bytes whose hash is cached; reading smaller files is faster than the lookup."""
SETTLED = 2 * 10**9
"""Age in ns of the last change below which a hash is not cached: a second change could have the same time."""

Entry = list[int | str]
"""Size, modification time in ns, inode, hash."""


def cache_root() -> Path:
    """Return the user's cache of hashes and fetched pipelines: ``RCM_CACHE``, or ``rcm-distill`` in its folder."""
    given = os.environ.get("RCM_CACHE")
    if given:
        return Path(given).absolute()
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(usual).absolute() / "rcm-distill"


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes, always read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def kept_sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes; cached for exactly this size, modification time and inode."""
    facts, now = path.stat(), time.time_ns()
    if facts.st_size < LARGE:
        return sha256(path)
    key: Entry = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
    entry = _read(_place(path)).get(path.name)
    if entry is not None and entry[:3] == key:
        return str(entry[3])
    digest = sha256(path)
    if now - facts.st_mtime_ns >= SETTLED:
        _keep(path, [*key, digest])
    return digest


def _keep(path: Path, entry: Entry) -> None:
    place = _place(path)
    entries = _read(place) | {path.name: entry}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, prefix=".", delete=False) as stream:
            json.dump(entries, stream)
        os.replace(stream.name, place)
    except OSError:  # the hash is right all the same; without a writable cache it is computed each time
        return


def _place(path: Path) -> Path:
    folder = os.fsencode(path.parent.absolute())
    return cache_root() / "hashes" / f"{hashlib.sha256(folder).hexdigest()[:32]}.json"


def _read(place: Path) -> dict[str, Entry]:
    """Return the readable entries; a damaged file has none and is overwritten."""
    try:
        found = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    whole = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in whole if isinstance(entry, list) and len(entry) == 4}
