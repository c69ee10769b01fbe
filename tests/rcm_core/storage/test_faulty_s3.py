"""S3 faults through a proxy: transient faults are retried, permanent ones give one sentence, no file is partial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import torch
from faulty_proxy import Fault, Proxy, faulty_proxy
from object_store import BUCKET, authorise, object_store

from rcm_core.data.trajectory_store import Place, read_finished, write_shard
from rcm_core.errors import InputError, OutageError
from rcm_core.stages import publish
from rcm_core.storage import fetch as fetching

CONTENT = {
    "model_index.json": b"{}" * 10,
    "transformer/config.json": b"{}",
    "transformer/a.safetensors": b"0123" * 50_000,
}
PASSING = [
    Fault(503, times=2), Fault(500, times=2), Fault("reset", times=2), Fault("cut", times=1), Fault("delay", times=2),
]  # fmt: skip
FACTS = {"samples": [0, 1], "prompts": ["a", "b"]}
WRITES = [Fault(503, times=2), Fault(500, times=2), Fault("reset", times=2), Fault("delay", times=2)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with object_store() as url:
        yield url


@pytest.fixture
def proxy(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    authorise(monkeypatch)
    monkeypatch.setenv("RCM_CACHE", str(tmp_path / "cache"))
    with faulty_proxy(endpoint) as found:
        yield found


@pytest.fixture
def stored(endpoint: str, tmp_path: Path, proxy: Proxy) -> str:
    """Upload a pipeline to the server, bypassing the proxy; yield its address, unique to this test."""
    client = boto3.client("s3", endpoint_url=endpoint)
    for name, content in CONTENT.items():
        client.put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/{name}", Body=content)
    client.close()
    return f"s3://{BUCKET}/{tmp_path.name}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def copy_of(fault: Fault, path: str, method: str) -> Fault:
    return Fault(fault.kind, method, path, fault.times)


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: str(f.kind))
@pytest.mark.parametrize("path", ["a.safetensors", "list-type"])
def test_a_teacher_is_fetched_in_spite_of_faults_that_pass(
    stored: str, proxy: Proxy, fault: Fault, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "RANGE", 2**16)
    proxy.faults.append(copy_of(fault, path, "GET"))
    assert contents(fetching.fetch(stored, proxy.url, "no pipeline")) == CONTENT
    assert len(proxy.done) == fault.times


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (503, "a.safetensors"),
        (403, "list-type"),
        ("reset", "list-type"),
        ("short", "a.safetensors"),
        ("cut", "a.safetensors"),
    ],
)
def test_a_teacher_that_cannot_be_read_is_one_sentence_and_fetched_the_next_time(
    stored: str, proxy: Proxy, kind: int | str, path: str, tmp_path: Path
) -> None:
    proxy.faults.append(Fault(kind, path=path, times=-1))
    with pytest.raises(InputError) as refused:
        fetching.fetch(stored, proxy.url, "no pipeline")
    assert isinstance(refused.value, OutageError) is (kind != 403)
    assert "\n" not in str(refused.value)
    assert BUCKET in str(refused.value)
    places = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    assert all(any(part.endswith(".partial") for part in p.parts) for p in places)
    proxy.faults.clear()
    assert contents(fetching.fetch(stored, proxy.url, "no pipeline")) == CONTENT


@pytest.mark.parametrize("fault", WRITES, ids=lambda f: str(f.kind))
def test_shards_are_written_in_spite_of_faults_that_pass(proxy: Proxy, tmp_path: Path, fault: Fault) -> None:
    place = Place(f"s3://{BUCKET}/{tmp_path.name}", proxy.url)
    proxy.faults.append(copy_of(fault, "shard_00000", "PUT"))
    facts = write_shard(place, "shard_00000.safetensors", {"x0": torch.ones(2)}, FACTS)
    assert len(proxy.done) == fault.times
    assert read_finished(place, "shard_00000.safetensors") == facts


def test_a_fetch_that_broke_off_reads_no_range_again(
    stored: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "RANGE", 2**14)
    monkeypatch.setattr(fetching, "READERS", 1)
    size = len(CONTENT["transformer/a.safetensors"])
    ranges = -(-size // 2**14)
    proxy.faults.append(Fault(503, path="a.safetensors", times=-1, after=5))
    with pytest.raises(OutageError, match="are kept"):
        fetching.fetch(stored, proxy.url, "no pipeline")
    proxy.faults[:] = [Fault("delay", path="a.safetensors", times=-1, seconds=0)]
    proxy.done.clear()
    assert contents(fetching.fetch(stored, proxy.url, "no pipeline")) == CONTENT
    assert len(proxy.done) == ranges - 5
    proxy.done.clear()
    assert contents(fetching.fetch(stored, proxy.url, "no pipeline")) == CONTENT
    assert proxy.done == []


def half_done(work: Callable[[], object], proxy: Proxy, fault: Fault) -> str:
    """Run ``work`` under ``fault``; return the error message."""
    proxy.faults.append(fault)
    with pytest.raises(InputError) as refused:
        work()
    proxy.faults.clear()
    assert isinstance(refused.value, OutageError) is (fault.kind != 403)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", [403, "reset"])
def test_a_shard_that_cannot_be_written_is_one_sentence(
    proxy: Proxy, tmp_path: Path, kind: int | str
) -> None:
    place = Place(f"s3://{BUCKET}/{tmp_path.name}", proxy.url)

    def write() -> object:
        return write_shard(place, "shard_00000.safetensors", {"x0": torch.ones(2)}, FACTS)

    said = half_done(write, proxy, Fault(kind, "PUT", "json", times=-1))
    assert place.url in said
    assert read_finished(place, "shard_00000.safetensors") is None
    write()
    assert read_finished(place, "shard_00000.safetensors") is not None


@pytest.mark.parametrize("kind", [403, "reset"])
def test_a_student_is_published_whole_or_its_card_is_missing(
    endpoint: str, proxy: Proxy, tmp_path: Path, kind: int | str
) -> None:
    out = tmp_path / "pipeline"
    for name, content in (CONTENT | {"README.md": b"card"}).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    target = f"s3://{BUCKET}/{tmp_path.name}"

    def copy() -> None:
        publish._copy(out, target, proxy.url, {})

    said = half_done(copy, proxy, Fault(kind, "PUT", "a.safetensors", times=-1))
    assert target in said
    client = boto3.client("s3", endpoint_url=endpoint)
    keys = {o["Key"] for o in client.list_objects_v2(Bucket=BUCKET, Prefix=tmp_path.name).get("Contents", [])}
    assert f"{tmp_path.name}/README.md" not in keys
    proxy.faults.extend([Fault(503, "PUT", times=2), Fault("reset", "PUT", times=2)])
    copy()
    for name in (*CONTENT, "README.md"):
        stored = client.get_object(Bucket=BUCKET, Key=f"{tmp_path.name}/{name}")["Body"].read()
        assert stored == (out / name).read_bytes()
    client.close()
