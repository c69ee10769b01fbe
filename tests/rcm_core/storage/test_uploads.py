"""A part shared by two published versions is sent once, to a real S3 server behind a proxy that counts bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import Fault, Proxy, faulty_proxy
from object_store import BUCKET, authorise, object_store

from rcm_core.stages.publish import _copy
from rcm_core.storage.links import SMALL
from rcm_core.storage.s3 import filesystem

LARGE = SMALL + 100
SHARED = {"text_encoder/model.safetensors": b"e" * LARGE, "vae/model.safetensors": b"v" * (LARGE + 1)}


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    authorise(monkeypatch)
    monkeypatch.setenv("RCM_CACHE", str(tmp_path / "cache"))
    with object_store() as endpoint, faulty_proxy(endpoint) as found:
        yield found


def version(folder: Path, network: bytes) -> Path:
    """Create a student's folder with this network."""
    files = {
        **SHARED,
        "transformer/model.safetensors": network,
        "student.json": network[:9],
        "README.md": b"card",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def publish(proxy: Proxy, out: Path, target: str) -> int:
    """Publish ``out`` and check the copy byte for byte; return the bytes sent."""
    before = proxy.uploaded
    _copy(out, target, proxy.url, {})
    sent = proxy.uploaded - before
    system, root = filesystem(target, proxy.url)
    system.invalidate_cache()
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert {name.removeprefix(f"{root}/") for name in system.find(root)} == files.keys()
    assert all(system.cat_file(f"{root}/{name}") == content for name, content in files.items())
    return sent


def test_what_versions_share_is_sent_once(proxy: Proxy, tmp_path: Path) -> None:
    place = f"s3://{BUCKET}/shelf/student"
    first, second = (version(tmp_path / name, name.encode() * LARGE) for name in "ab")
    assert publish(proxy, first, f"{place}/1") > 3 * LARGE
    assert LARGE < publish(proxy, second, f"{place}/2") < LARGE + 10_000
    # the copies also serve as sources when the original version is deleted
    system, root = filesystem(place, proxy.url)
    system.rm(f"{root}/1", recursive=True)
    assert publish(proxy, first, f"{place}/3") < LARGE + 10_000


def test_same_size_and_name_are_not_the_same_bytes(proxy: Proxy, tmp_path: Path) -> None:
    place = f"s3://{BUCKET}/shelf/student"
    out = version(tmp_path / "a", b"a" * LARGE)
    publish(proxy, out, f"{place}/1")
    system, root = filesystem(place, proxy.url)
    # an object without a content hash, as other tools write it, is no source of a copy
    system.pipe_file(f"{root}/0/text_encoder/model.safetensors", b"x" * LARGE)
    (out / "text_encoder/model.safetensors").write_bytes(b"f" * LARGE)
    assert LARGE < publish(proxy, out, f"{place}/2") < LARGE + 10_000


def test_a_copy_that_is_refused_is_sent(proxy: Proxy, tmp_path: Path) -> None:
    place = f"s3://{BUCKET}/shelf/student"
    out = version(tmp_path / "a", b"a" * LARGE)
    publish(proxy, out, f"{place}/1")
    proxy.faults.append(Fault(403, "PUT", "2/text_encoder"))
    assert LARGE < publish(proxy, out, f"{place}/2") < LARGE + 10_000
    assert proxy.done == ["403 PUT /bucket/shelf/student/2/text_encoder/model.safetensors"]
