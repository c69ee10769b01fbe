"""Links and reflinks: a file in a second place without a second copy of its bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

from rcm_core.storage.pipeline_files import pipeline_files

SMALL = 2**20
"""Largest file in bytes that is copied: a user may edit it in its new place."""
FICLONE = 0x40049409
"""Number of Linux's ioctl for a reflink: a copy that shares blocks until one of the files is written to."""
UNABLE = {
    errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS,
}  # fmt: skip
"""Error numbers of file systems that cannot link, or cannot link these two files."""


def place_file(source: Path, target: Path, ours: bool = True) -> None:
    """Make ``target`` a file with the bytes of ``source`` that survives the removal of ``source``.

    A reflink where the file system has them, else a hard link, else (another file system, a small file) a copy.
    Symlinks are followed. A hard link shares its bytes and its mode for good: neither file may be written in place
    afterwards, and DVC makes both read-only. So a file of the user (``ours`` is False) is never linked.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    real = Path(os.path.realpath(source))
    if real.stat().st_size <= SMALL or not (_reflink(real, target) or (ours and _hard_link(real, target))):
        shutil.copyfile(real, target)


def shares(source: Path, folder: Path) -> bool:
    """Return whether ``place_file`` could link ``source`` into ``folder``: both are on one file system."""
    real = Path(os.path.realpath(source)).stat()
    there = next(p for p in [folder, *folder.absolute().parents] if p.exists()).stat()
    return real.st_size > SMALL and real.st_dev == there.st_dev


def place_folder(source: Path, target: Path) -> None:
    """Place every file of the folder ``source`` (``pipeline_files``) in ``target`` by ``place_file``."""
    for name, path in pipeline_files(source).items():
        place_file(path, target / name)


def _reflink(source: Path, target: Path) -> bool:
    try:
        with source.open("rb") as read, target.open("wb") as written:
            fcntl.ioctl(written.fileno(), FICLONE, read.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno not in UNABLE:
            raise
        return False
    return True


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in UNABLE:
            raise
        return False
    return True
