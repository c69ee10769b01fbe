"""The files of a pipeline: links are followed, notes skipped, non-files refused, changes noticed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, authorise, object_store

from rcm_core.errors import InputError
from rcm_core.storage import pipeline_files as own
from rcm_core.storage.fetch import fetch, fetch_folder
from rcm_core.storage.files import sha256_folder
from rcm_core.storage.links import place_folder
from rcm_core.storage.pipeline_files import objects, pipeline_files, refuse_changed, require_index, signatures
from rcm_core.storage.s3 import filesystem

NAMES = ["model_index.json", "vae/config.json", "vae.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_text(name)
    return tmp_path / "given"


def test_notes_of_a_download_are_not_the_pipeline_s(folder: Path, tmp_path: Path) -> None:
    digest = sha256_folder(folder)
    assert list(pipeline_files(folder)) == ["model_index.json", "vae/config.json", "vae.json"]
    for name in (
        ".cache/huggingface/download/a.metadata", ".gitattributes", ".DS_Store", "vae/.huggingface/a", ".git/HEAD",
        "Thumbs.db", "__MACOSX/vae.json",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("note")
    os.mkfifo(folder / ".cache/lock")
    assert sha256_folder(folder) == digest
    place_folder(folder, tmp_path / "copy")
    copied = sorted(p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*.*"))
    assert copied == sorted(NAMES)


def test_linked_folders_and_files_are_followed(folder: Path, tmp_path: Path) -> None:
    digest = sha256_folder(folder)
    (folder / "vae").rename(tmp_path / "shared")
    (folder / "vae").symlink_to(tmp_path / "shared")
    (folder / "vae.json").rename(tmp_path / "file")
    (folder / "vae.json").symlink_to(tmp_path / "file")
    assert sha256_folder(folder) == digest
    fetch_folder(str(folder), None, tmp_path / "copy", "none")
    assert sha256_folder(tmp_path / "copy") == digest
    assert not any(p.is_symlink() for p in (tmp_path / "copy").rglob("*"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "vae/up").symlink_to(f), r"vae/up is a link to a folder above it, an endless loop"),
        (lambda f: (f / "a").symlink_to(f / "a"), r"a links to .*a, which cannot be read"),
        (lambda f: (f / "a").symlink_to("nowhere"), r"a links to nowhere, which cannot be read \(No such file"),
        (lambda f: os.mkfifo(f / "vae/pipe"), r"vae/pipe is a named pipe, socket or device; expected files"),
    ],
    ids=["loop", "link to itself", "dangling link", "named pipe"],
)  # fmt: skip
def test_what_is_no_file_is_refused(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(folder)
    for use in (pipeline_files, sha256_folder, lambda f: place_folder(f, tmp_path / "copy")):
        with pytest.raises(InputError, match=said):
            use(folder)
    assert not (tmp_path / "copy").exists()


def test_a_tree_that_is_no_pipeline_is_not_walked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^/ holds no model_index\.json; expected a pipeline"):
        require_index(Path("/"), "/")
    require_index(folder, "given")
    monkeypatch.setattr(own, "MOST_FILES", 2)
    with pytest.raises(InputError, match="holds more than 2 files, which no pipeline has"):
        pipeline_files(folder)


def test_a_teacher_that_changes_while_it_is_fetched_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signatures(folder)
    refuse_changed(before, signatures(folder), "given")
    authorise(monkeypatch)
    with object_store() as endpoint:
        system, root = filesystem(f"s3://{BUCKET}/changing", endpoint)
        for name in NAMES:
            system.pipe(f"{root}/{name}", name.encode())
        read = system.cat_file

        def writing(name: str, **part: int) -> Any:
            system.pipe(f"{root}/vae.json", b"other weights of another step")
            return read(name, **part)

        monkeypatch.setattr(system, "cat_file", writing)
        with pytest.raises(InputError, match=r"changing changed while it was read: 1 files, first vae\.json"):
            fetch(f"s3://{BUCKET}/changing", endpoint, "none")


def test_marks_of_folders_on_s3_are_no_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorise(monkeypatch)
    with object_store() as endpoint:
        system, root = filesystem(f"s3://{BUCKET}/teacher", endpoint)
        for name in NAMES:
            system.pipe(f"{root}/{name}", name.encode())
        for name in ("vae/", "vae", "vae_$folder$", ""):
            system.pipe(f"{root}/{name}", b"")
        system.pipe(f"{root}/.gitattributes", b"note")
        assert list(objects(system, root)) == list(pipeline_files(folder))
        copy = fetch(f"s3://{BUCKET}/teacher", endpoint, "none")
    assert sha256_folder(copy) == sha256_folder(folder)
    assert list(pipeline_files(copy)) == list(pipeline_files(folder))
