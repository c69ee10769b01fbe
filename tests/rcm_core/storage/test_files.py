"""Files appear complete or not at all; failures to read, reach or store give one sentence."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from object_store import BUCKET, Refusing, authorise, object_store

from rcm_core.errors import InputError
from rcm_core.storage.files import (
    atomic,
    atomic_folder,
    read_json,
    require_space,
    sha256,
    sha256_folder,
    write_json,
)
from rcm_core.storage.s3 import filesystem


class HalfWay(Exception):  # noqa: N818 - says where, not what
    """Any exception while a file is written."""


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with suppress(HalfWay), atomic(path) as temporary:
        temporary.write_text("ne")
        raise HalfWay
    assert path.read_text() == "old"
    assert names(tmp_path) == ["deep", "deep/file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_atomic_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "old").touch()
        assert not path.exists()
    with suppress(HalfWay), atomic_folder(path) as temporary:
        (temporary / "new").touch()
        raise HalfWay
    assert names(tmp_path) == ["deep", "deep/folder", "deep/folder/old"]
    with atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert names(path) == ["new"]


def test_a_folder_s_hash_is_of_names_and_bytes(tmp_path: Path) -> None:
    for name, files in {"a": "12", "b": "21", "c": "12", "d": "12"}.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_text(file)
    (tmp_path / "c/2").write_text("other")
    (tmp_path / "d/2").rename(tmp_path / "d/3")
    a, b, c, d = (sha256_folder(tmp_path / n) for n in "abcd")
    assert a == b  # written in another order
    assert len({a, c, d}) == 3


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": [0.1, None]})
    write_json(tmp_path / "b", {"y": [0.1, None], "x": 1})
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert read_json(tmp_path / "a", "train") == {"x": 1, "y": [0.1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", float("nan"))
    assert json.loads((tmp_path / "a").read_text())["x"] == 1


def test_json_that_is_absent_or_damaged_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "teacher.json"
    with pytest.raises(InputError, match=r"teacher\.json does not exist; make it with `dvc repro teacher`"):
        read_json(path, "teacher")
    path.write_text('{"half')
    with pytest.raises(InputError, match=r"teacher\.json is not JSON .*`dvc repro teacher` makes it again"):
        read_json(path, "teacher")


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 1 MiB; without permission to mount, a folder that simulates one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False
    if os.geteuid() == 0:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        usage = shutil.disk_usage(folder)._replace(free=2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    yield folder
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_space_is_asked_for_before_anything_is_written(full_disk: Path) -> None:
    require_space(full_disk, 2**19)
    require_space(full_disk / "not" / "there" / "yet", 2**19)
    with pytest.raises(InputError, match=r"no space: .* needs 2\.0 MiB and \d\.\d MiB are free; free some"):
        require_space(full_disk / "not" / "there" / "yet", 2**21)
    assert names(full_disk) == []


def test_a_folder_is_a_file_system_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    system, path = filesystem("some/where", None)
    assert path == str(tmp_path / "some/where")
    assert not system.exists(path)


@pytest.mark.parametrize("url", ["gs://bucket/x", "file:///tmp/x", "http://host/x"])
def test_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=rf"{url}: expected a folder or s3://bucket/prefix, got {url[:2]}"):
        filesystem(url, None)


def test_s3_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    authorise(monkeypatch)
    with object_store() as endpoint:
        system, path = filesystem(f"s3://{BUCKET}/some/prefix/", endpoint)
        assert path == f"{BUCKET}/some/prefix"
        assert system.ls(BUCKET) == []
        with pytest.raises(
            InputError, match=r"bucket s3://bukket at http://.* does not exist; create it or name"
        ):
            filesystem("s3://bukket/x", endpoint)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(
        InputError, match=rf"s3://b at http://127.0.0.1:{port} cannot be reached .*check the endp"
    ):
        filesystem("s3://b/x", f"http://127.0.0.1:{port}")


def test_s3_that_refuses_us_says_which_credentials_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    authorise(monkeypatch)
    with (
        Refusing.serve() as endpoint,
        pytest.raises(InputError, match=r"refused the credentials .*set AWS_ACCESS_KEY_ID") as e,
    ):
        filesystem("s3://bucket/x", endpoint)
    assert "testing" not in str(e.value)  # what the credentials are is nobody's business


def test_s3_without_credentials_says_which_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authorise(monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with object_store() as endpoint, pytest.raises(InputError, match=r"credentials.*set AWS_ACCESS_KEY_ID"):
        filesystem(f"s3://{BUCKET}/x", f"{endpoint}/")
