"""Cached hashes: a large file is read once, until its size, modification time or inode changes."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from rcm_core.storage import hashes
from rcm_core.storage.hashes import LARGE, cache_root, kept_sha256, sha256


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of files whose bytes are read."""
    found: list[str] = []

    def counting(path: Path) -> str:
        found.append(path.name)
        return sha256(path)

    monkeypatch.setenv("RCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "sha256", counting)
    return found


def written(path: Path, content: bytes, age: float = 60) -> Path:
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_large_file_is_read_once(tmp_path: Path, read: list[str]) -> None:
    one, two = (written(tmp_path / name, name.encode() * LARGE) for name in ("one", "two"))
    for _ in range(3):
        assert [kept_sha256(p) for p in (one, two)] == [sha256(one), sha256(two)]
    assert read == ["one", "two"]


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_file_that_changed_is_read_again(tmp_path: Path, read: list[str], change: str) -> None:
    path = written(tmp_path / "weights", b"a" * LARGE)
    kept_sha256(path)
    facts = path.stat()
    content = b"b" * (LARGE + (change == "size"))
    if change == "inode":
        path.rename(tmp_path / "before")
    path.write_bytes(content)
    later = change == "time"
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + later))
    assert kept_sha256(path) == hashlib.sha256(content).hexdigest()
    assert read == ["weights"] * 2


def test_small_and_just_written_files_are_not_kept(tmp_path: Path, read: list[str]) -> None:
    for path in (written(tmp_path / "small", b"a"), written(tmp_path / "new", b"a" * LARGE, age=0)):
        kept_sha256(path)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_or_read_only_cache_costs_time_and_nothing_else(tmp_path: Path, read: list[str]) -> None:
    path = written(tmp_path / "weights", b"a" * LARGE)
    digest = kept_sha256(path)
    (place,) = (cache_root() / "hashes").iterdir()
    for damage in ("", "[1]", '{"weights": 3}', '{"weights": [1, 2]}'):
        place.write_text(damage)
        assert kept_sha256(path) == digest
    place.unlink()
    place.parent.rmdir()
    place.parent.write_text("no folder")
    assert kept_sha256(path) == digest
    assert len(read) == 6
