"""Linked copies: large files share their bytes and survive their source, small ones can be edited."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rcm_core.storage.links import SMALL, place_file, place_folder, shares


def test_a_large_file_shares_its_bytes_and_survives_its_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a" * (SMALL + 1))
    (tmp_path / "link").symlink_to(source)
    before = os.statvfs(tmp_path).f_bfree
    place_file(tmp_path / "link", tmp_path / "there/target")
    assert before - os.statvfs(tmp_path).f_bfree < SMALL // os.statvfs(tmp_path).f_frsize or os.path.samefile(
        source, tmp_path / "there/target"
    )
    source.unlink()
    assert (tmp_path / "there/target").read_bytes() == b"a" * (SMALL + 1)
    assert not (tmp_path / "there/target").is_symlink()


def test_small_files_are_copies(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given/config.json").write_text("{}")
    place_folder(tmp_path / "given", tmp_path / "copy")
    (tmp_path / "copy/config.json").write_text("changed")
    assert (tmp_path / "given/config.json").read_text() == "{}"


def test_what_cannot_be_linked_is_copied_and_other_errors_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a" * (SMALL + 1))

    def refuse(number: int) -> None:
        def link(*names: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", link)

    refuse(errno.EXDEV)
    place_file(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    refuse(errno.EIO)
    if not shares_blocks(tmp_path):
        with pytest.raises(OSError, match="Input/output"):
            place_file(source, tmp_path / "other")


def shares_blocks(folder: Path) -> bool:
    """Return whether the file system has reflinks, which take precedence over hard links."""
    from rcm_core.storage.links import _reflink

    (folder / "one").write_bytes(b"a")
    return _reflink(folder / "one", folder / "two")


def test_files_of_another_file_system_are_not_shared(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"a" * (SMALL + 1))
    assert shares(large, tmp_path / "not/yet")
    assert not shares(large, Path("/proc/self"))
