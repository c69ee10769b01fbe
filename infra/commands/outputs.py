"""Check the output path of a command before any work: it must be writable and contain no file of the user."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rcm_core.errors import InputError

MARK = "rcm sample"
"""Mark that identifies the pictures and videos of this command; written into each."""
SUFFIXES = (".png", ".gif", ".mp4")
MOST_NAME = 255
"""Maximum bytes of a file name on all common file systems."""


def refuse_place(out: Path) -> None:
    """Raise InputError unless ``out``, a file or folder, can be written: name lengths, parent folders, permissions."""
    long = next((p for p in out.parts if len(os.fsencode(p)) > MOST_NAME), None)
    if long is not None:
        raise InputError(
            f"--out has a name of {len(os.fsencode(long))} bytes, more than {MOST_NAME}; choose a shorter one"
        )
    if "\0" in str(out):
        raise InputError("--out has a NUL byte in its name; choose another name")
    above = next(p for p in out.absolute().parents if os.path.lexists(p))
    if not above.is_dir():
        raise InputError(f"--out {out}: {above} is not a folder; choose another path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"--out {out}: {above} is not writable; correct its permissions, or choose another path"
        )


def refuse_others(out: Path, force: bool) -> None:
    """Raise InputError if ``out`` has files that this command did not write and ``force`` is not set."""
    if out.suffix and out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it, or a folder without a suffix")
    if not out.suffix and out.exists() and not out.is_dir():
        raise InputError(
            f"--out {out} is a file; name a folder, or a file with a suffix ({', '.join(SUFFIXES)})"
        )
    if force or not out.exists():
        return
    others = [path for path in (sorted(out.iterdir()) if out.is_dir() else [out]) if not is_ours(path)]
    if others:
        raise InputError(
            f"--out {out}: {others[0].name} was not written by `{MARK}` and would be lost; choose another path, or add"
            " --force"
        )


def is_ours(path: Path) -> bool:
    """Return whether this command wrote the picture or video ``path``."""
    return path.suffix.lower() in SUFFIXES and path.is_file() and MARK.encode() in path.read_bytes()


@contextmanager
def replaced_samples(out: Path) -> Iterator[Path]:
    """Yield a temporary folder; if the block succeeds, its files replace this command's earlier files in ``out``.

    Files of others stay; the caller has called ``refuse_others`` before.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=".samples-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        if not out.exists():
            temporary.replace(out)
            return
        for path in out.iterdir():
            if is_ours(path):
                path.unlink()
        for path in temporary.iterdir():
            path.replace(out / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
