"""Shards, their manifest, and the repair of damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from object_store import BUCKET, authorise, object_store
from torch import Tensor

from rcm_core.data.trajectory_store import (
    MANIFEST,
    Place,
    Store,
    read_finished,
    shard_name,
    write_manifest,
    write_shard,
    write_store,
)
from rcm_core.errors import InputError
from rcm_core.storage.files import sha256

SIZES = (3, 2, 4)


def tensors(first: int, count: int) -> dict[str, Tensor]:
    ids = torch.arange(first, first + count).float()
    return {"x0": ids[:, None].expand(count, 5).contiguous(), "condition.text": -ids[:, None]}


def fill(folder: Path, place: Place, location: str) -> None:
    """Write nine samples in three shards as the stage does, but in another order of shards."""
    shards = []
    for index in (2, 0, 1):
        first, count = sum(SIZES[:index]), SIZES[index]
        facts = {
            "samples": list(range(first, first + count)),
            "prompts": [f"p{i}" for i in range(first, first + count)],
        }
        shards.append(write_shard(place, shard_name(index), tensors(first, count), facts))
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / MANIFEST, shards)
    write_store(folder, location, place.endpoint)
    negative = Place(str(folder))
    write_shard(negative, "negative.safetensors", {"condition.text": torch.zeros(1, 1)}, {})
    (folder / "negative.safetensors.json").unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/trajectories"
    fill(folder, Place(str(folder / "shards")), "shards")
    return folder


def test_samples_come_back_in_the_order_of_their_ids(folder: Path, tmp_path: Path) -> None:
    store = Store(folder, tmp_path / "cache")
    assert len(store) == 9
    assert list(store.frame["sample"]) == list(range(9))
    assert list(store.frame["prompt"]) == [f"p{i}" for i in range(9)]
    assert store.names == ["condition.text", "x0"]
    for i in range(9):
        sample = store.sample(i)
        assert torch.equal(sample["x0"], torch.full((5,), float(i)))
        assert torch.equal(sample["condition.text"], torch.tensor([-float(i)]))
    assert not (tmp_path / "cache").exists()  # local shards are read in place


def test_the_same_samples_are_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    fill(again, Place(str(again / "shards")), "shards")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert len(files) == 9  # three shards and their facts, manifest, store.json, negative
    assert all(sha256(folder / f) == sha256(again / f) for f in files)


def test_a_shard_is_finished_when_its_bytes_are_what_its_facts_say(tmp_path: Path) -> None:
    place, name = Place(str(tmp_path)), shard_name(0)
    assert read_finished(place, name) is None
    facts = write_shard(place, name, tensors(0, 3), {"samples": [0, 1, 2], "prompts": ["a", "b", "c"]})
    assert read_finished(place, name) == facts
    assert facts["bytes"] == (tmp_path / name).stat().st_size
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    assert read_finished(place, name) is None
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"{name}.json").unlink()  # killed between the shard and its facts
    assert read_finished(place, name) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_shard_is_named_with_what_repairs_it(folder: Path, tmp_path: Path, damage: str) -> None:
    path = folder / "shards" / shard_name(1)
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    if damage == "missing":
        path.unlink()
    said = "is missing" if damage == "missing" else r"is corrupt: its sha256 is .*, the manifest says"
    with pytest.raises(InputError, match=rf"shard {path} {said}.*`dvc repro trajectories` makes it again"):
        Store(folder, tmp_path / "cache")


@pytest.mark.parametrize("name", [MANIFEST, "negative.safetensors", "store.json"])
def test_the_files_beside_the_shards_are_named_too(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=rf"{path} is not .*`dvc repro trajectories`"):
        Store(folder, tmp_path / "cache")
    path.unlink()
    with pytest.raises(InputError, match=rf"{path} (is missing|does not exist).*`dvc repro trajectories`"):
        Store(folder, tmp_path / "cache")


def test_shards_on_s3_are_fetched_once_verified_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorise(monkeypatch)
    folder, cache = tmp_path / "runs/trajectories", tmp_path / "cache"
    with object_store() as endpoint:
        place = Place(f"s3://{BUCKET}/some/prefix", endpoint)
        fill(folder, place, place.url)
        assert read_finished(place, shard_name(0)) is not None
        store = Store(folder, cache)
        assert [float(store.sample(i)["x0"][0]) for i in range(9)] == list(range(9))

        system, root = place.open()
        content = system.cat_file(f"{root}/{shard_name(1)}")
        system.pipe_file(f"{root}/{shard_name(1)}", content[:-1])
        assert read_finished(place, shard_name(1)) is None
        url = f"{place.url}/{shard_name(1)}"
        repair = "`dvc repro --force --single-item trajectories` makes it again"
        with pytest.raises(InputError, match=rf"shard {url} is corrupt: .*{repair}"):
            Store(folder, tmp_path / "another cache")
        system.rm_file(f"{root}/{shard_name(1)}")
        with pytest.raises(InputError, match=rf"shard {url} is missing; {repair}"):
            Store(folder, tmp_path / "another cache")
    kept = Store(folder, cache)  # without the server
    assert float(kept.sample(4)["x0"][0]) == 4
    for path in (cache / "shards").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be reached"):
        Store(folder, cache)  # damaged shards are fetched again
