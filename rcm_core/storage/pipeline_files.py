"""The files of a pipeline: one definition for hashing, copying, listing on S3, publishing and watching a folder.

Hidden files and folders, and what file browsers leave behind, are not files of a pipeline: a download writes its notes
there (``.cache/huggingface``, ``.gitattributes``). Links to files and folders are followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from rcm_core.errors import InputError

LEFT_BEHIND = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})
MOST_FILES = 100_000
"""Most files of a folder: one with more is probably the root of a disk, named by mistake."""
INDEX = "model_index.json"
FOLDER_MARK = "_$folder$"
"""Suffix of the empty objects that Hadoop's tools write for folders on S3."""

Signature = tuple[int, int, int]


def is_part(name: str) -> bool:
    """Return whether ``name``, relative to the folder with slashes, is a file of a pipeline."""
    return not any(part.startswith(".") or part in LEFT_BEHIND for part in PurePosixPath(name).parts)


def in_order(names: Mapping[str, Any]) -> list[str]:
    """Return the names in the order in which they are hashed: by folder, then by name."""
    return sorted(names, key=lambda name: PurePosixPath(name).parts)


def pipeline_files(folder: Path) -> dict[str, Path]:
    """Return the files of the pipeline in ``folder`` by their names relative to it (with slashes), in order.

    Raises InputError for a link that is broken or leads to a folder above it, for a named pipe, socket or device, for
    an unreadable file or folder, and for more than ``MOST_FILES`` files.
    """
    found: dict[str, Path] = {}
    for path in _walk(folder, ()):
        found[path.relative_to(folder).as_posix()] = path
        if len(found) > MOST_FILES:
            raise InputError(
                f"{folder} holds more than {MOST_FILES:,} files, which no pipeline has; give the pipeline's own folder"
            )
    return {name: found[name] for name in in_order(found)}


def require_index(folder: Path, where: str) -> None:
    """Raise InputError unless ``folder`` has a model_index.json. Called before anything walks the folder."""
    if not (folder / INDEX).is_file():
        raise InputError(f"{where} holds no {INDEX}; expected a pipeline in diffusers layout")


def signatures(folder: Path) -> dict[str, Signature]:
    """Return size, modification time in ns, and inode of each file of the pipeline in ``folder``."""
    facts = {name: path.stat() for name, path in pipeline_files(folder).items()}
    return {name: (f.st_size, f.st_mtime_ns, f.st_ino) for name, f in facts.items()}


def objects(system: fsspec.AbstractFileSystem, root: str) -> dict[str, dict[str, Any]]:
    """Return the facts in ``system`` (S3) of each file of the pipeline below ``root``, by relative names, in order.

    Empty objects that mark folders (``transformer/``) are not files.
    """
    listed = system.find(root, detail=True)
    facts = {name.removeprefix(root).lstrip("/"): fact for name, fact in listed.items()}
    folders = {parent.as_posix() for name in facts for parent in PurePosixPath(name).parents}
    found = {
        name: fact
        for name, fact in facts.items()
        if name and is_part(name) and not (_is_empty(fact) and _marks_folder(name, folders))
    }
    return {name: found[name] for name in in_order(found)}


def refuse_changed(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> None:
    """Raise InputError if the files of ``where`` changed while they were read."""
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    if changed:
        raise InputError(
            f"{where} changed while it was read: {len(changed)} files, first {changed[0]}; run the stage again when"
            " nothing writes there"
        )


def _is_empty(fact: Mapping[str, Any]) -> bool:
    return not fact["size"]


def _marks_folder(name: str, folders: set[str]) -> bool:
    return name.endswith(("/", FOLDER_MARK)) or name in folders


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    try:
        here = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); correct its permissions") from error
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        raise InputError(f"{folder} is a link to a folder above it, an endless loop; remove the link")
    for entry in entries:
        if not is_part(entry.name):
            continue
        path = Path(entry.path)
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            where = f"links to {os.readlink(path)}" if path.is_symlink() else "is listed in its folder"
            raise InputError(
                f"{path} {where}, which cannot be read ({error.strerror}); fetch the file, or remove the entry"
            ) from error
        if stat.S_ISDIR(mode):
            yield from _walk(path, (*above, identity))
        elif stat.S_ISREG(mode):
            yield path
        else:
            raise InputError(
                f"{path} is a named pipe, socket or device; expected files and folders only: remove it"
            )
