"""Trajectories of the teacher: resumable per shard, local or on S3, and never half-written."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import BUCKET, Refusing, authorise, object_store
from safetensors.torch import load_file, save_file
from workspaces import accept_teacher, configure

from infra.executors.local import LocalExecutor
from rcm_core.config.sections import Params
from rcm_core.data.trajectory_store import Place, Store, shard_name, write_shard
from rcm_core.errors import InputError
from rcm_core.samplers.jobs import Job, Teacher, load_guided
from rcm_core.stages import train, trajectories
from rcm_core.storage.files import read_json, sha256, sha256_folder

OUTPUTS = ("shards", "manifest.parquet", "negative.safetensors", "store.json")
SHARDS = [shard_name(i) for i in range(3)]
Usage = namedtuple("Usage", "total used free")


class Interrupted(LocalExecutor):
    """An executor that is killed after ``after`` shards."""

    def __init__(self, workspace: Path, after: int) -> None:
        super().__init__(workspace)
        self.after = after

    def map(self, function: Any, items: Any, label: str, *, device: str = "cpu") -> Iterator[Any]:
        yield from super().map(function, items[: self.after], label, device=device)
        raise KeyboardInterrupt


def run(params: Params, workspace: Path) -> Path:
    trajectories.run(params, workspace, LocalExecutor(workspace))
    return workspace / "runs/trajectories"


def hashes(folder: Path) -> dict[str, str]:
    paths = {name: folder / name for name in OUTPUTS}
    return {n: sha256_folder(p) if p.is_dir() else sha256(p) for n, p in paths.items()}


@pytest.fixture
def fresh(workspace: Path) -> Path:
    """The tiny run without its trajectories."""
    shutil.rmtree(workspace / "runs/trajectories")
    return workspace


def test_an_interrupted_run_makes_only_the_missing_shards(fresh: Path, tiny_run: Path) -> None:
    params = configure(fresh, {})
    with pytest.raises(KeyboardInterrupt):
        trajectories.run(params, fresh, Interrupted(fresh, 2))
    assert not (fresh / "runs/trajectories").exists()  # nothing half-written
    (state,) = (fresh / ".rcm/state").glob("trajectories-*/")
    place = Place(str(state / "shards"))
    # a complete shard is reused: this one has a mark; a truncated one is generated again
    facts = read_json(state / "shards" / f"{SHARDS[0]}.json", "trajectories")
    marked = load_file(state / "shards" / SHARDS[0])
    marked["x0"] += 1
    write_shard(place, SHARDS[0], marked, {k: facts[k] for k in ("samples", "prompts", "nonfinite")})
    second = state / "shards" / SHARDS[1]
    second.write_bytes(second.read_bytes()[:-8])
    out = run(params, fresh)
    theirs = tiny_run / "runs/trajectories/shards"
    assert torch.equal(load_file(out / "shards" / SHARDS[0])["x0"], load_file(theirs / SHARDS[0])["x0"] + 1)
    assert [sha256(out / "shards" / n) == sha256(theirs / n) for n in SHARDS] == [False, True, True]
    assert not state.exists()


def test_other_parameters_never_resume(fresh: Path) -> None:
    """Another seed has another fingerprint: the first run's shards are neither changed nor used."""
    with pytest.raises(KeyboardInterrupt):
        trajectories.run(configure(fresh, {}), fresh, Interrupted(fresh, 1))
    out = run(configure(fresh, {"trajectories.seed": 5}), fresh)
    (left,) = (fresh / ".rcm/state").glob("trajectories-*/")
    assert sha256(out / "shards" / SHARDS[0]) != sha256(left / "shards" / SHARDS[0])


def test_a_local_target_holds_the_shards_and_repairs_itself(fresh: Path, tiny_run: Path) -> None:
    """``target`` is relative to the workspace; one shard is deleted, one truncated, the third intact."""
    params = configure(fresh, {"trajectories.target": "elsewhere/shards/"})
    out = run(params, fresh)
    assert list((out / "shards").iterdir()) == []
    (folder,) = (fresh / "elsewhere/shards").iterdir()
    theirs = tiny_run / "runs/trajectories/shards"
    assert [sha256(folder / n) for n in SHARDS] == [sha256(theirs / n) for n in SHARDS]
    assert sha256(folder / "manifest.parquet") == sha256(out / "manifest.parquet")
    assert len(Store(out, fresh / "cache")) == 40

    before = (folder / SHARDS[0]).stat()
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[2]).write_bytes(b"truncated")
    with pytest.raises(InputError, match=f"{SHARDS[1]} is missing"):
        Store(out, fresh / "cache")
    run(params, fresh)
    after = (folder / SHARDS[0]).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [sha256(folder / n) for n in SHARDS] == [sha256(theirs / n) for n in SHARDS]


def test_an_s3_target_holds_shards_and_manifest_and_train_reads_them(
    fresh: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorise(monkeypatch)
    with object_store() as endpoint:
        target = f"s3://{BUCKET}/some/prefix"
        params = configure(fresh, {"trajectories.target": target, "trajectories.endpoint": endpoint})
        out = run(params, fresh)
        assert sorted(p.name for p in out.iterdir()) == [
            "manifest.parquet",
            "negative.safetensors",
            "record.json",
            "shards",  # empty: dvc.yaml has it for runs without a target
            "store.json",
        ]
        assert list((out / "shards").iterdir()) == []
        where = read_json(out / "store.json", "trajectories")
        assert where["location"].startswith(f"{target}/")
        system, root = Place(where["location"], endpoint).open()
        for name in SHARDS:
            theirs = tiny_run / "runs/trajectories/shards" / name
            assert system.cat_file(f"{root}/{name}") == theirs.read_bytes()
        assert system.cat_file(f"{root}/manifest.parquet") == (out / "manifest.parquet").read_bytes()

        # training reads them back: the same batches give the same student
        train.run(params, fresh, LocalExecutor(fresh))
        assert sha256_folder(fresh / "runs/train/candidates") == sha256_folder(
            tiny_run / "runs/train/candidates"
        )
        shutil.rmtree(fresh / ".rcm/state/cache")
        system.pipe_file(f"{root}/{SHARDS[2]}", b"corrupt")
        with pytest.raises(
            InputError, match=rf"shard {where['location']}/{SHARDS[2]} is corrupt: .*dvc repro"
        ):
            train.run(configure(fresh, {"train.seed": 7}), fresh, LocalExecutor(fresh))


def test_routes_are_kept_with_the_teacher_s_own_velocities(fresh: Path, tiny_run: Path) -> None:
    out = run(configure(fresh, {"trajectories.keep_trajectories": True}), fresh)
    teacher = Teacher.read(fresh)
    shard = load_file(out / "shards" / SHARDS[1])
    x, t, v = (shard[f"route.{n}"] for n in "xtv")
    assert x.shape == v.shape == (16, teacher.steps, *teacher.shape)
    assert t.shape == (16, teacher.steps)
    assert (t[:, :-1] > t[:, 1:]).all()  # from noise towards data
    assert t[0, 0] == pytest.approx(torch.pi / 2)
    plain = load_file(tiny_run / "runs/trajectories/shards" / SHARDS[1])
    assert torch.equal(shard["x0"], plain["x0"])
    condition = {"text": shard["condition.text"]}
    with torch.no_grad():
        for k in range(teacher.steps):
            fresh_call = load_guided(teacher, "cpu")(x[:, k], t[:, k], condition)
            # angles are kept in float32: network time 1000 tau moves by 1e-4, velocities by float32 rounding
            torch.testing.assert_close(v[:, k], fresh_call, rtol=1e-3, atol=1e-4)


def test_samples_that_are_not_finite_are_left_out_and_counted(fresh: Path) -> None:
    """A prompt whose embedding is infinite affects only its own samples."""
    encoder = fresh / "runs/teacher/pipeline/text_encoder/model.safetensors"
    weights = load_file(encoder)
    vocabulary = read_json(fresh / "runs/teacher/pipeline/tokenizer/tokenizer.json", "teacher")["model"][
        "vocab"
    ]
    name = next(n for n, w in weights.items() if n.endswith(("shared.weight", "embed_tokens.weight")))
    weights[name][vocabulary["seven"]] = torch.inf
    save_file(weights, encoder, metadata={"format": "pt"})
    accept_teacher(fresh)
    teacher, place = Teacher.read(fresh), Place(str(fresh / "shards"))
    prompts = ("a handwritten seven", "the digit 3", "a handwritten seven", "the digit 4")
    job = Job(teacher, prompts, (10, 11, 12, 13), 0, teacher.steps)
    facts = trajectories.generate_shard(trajectories.ShardJob(place, SHARDS[0], job, routes=False))
    assert (facts["samples"], facts["nonfinite"]) == ([11, 13], 2)
    assert facts["prompts"] == ["the digit 3", "the digit 4"]
    shard = load_file(fresh / "shards" / SHARDS[0])
    assert all(len(value) == 2 and value.isfinite().all() for value in shard.values())
    with pytest.raises(
        InputError, match=r"\d+ of 40 teacher samples are not finite, more than 1%; check the t"
    ):
        run(configure(fresh, {}), fresh)
    assert not (fresh / "runs/trajectories").exists()


def test_no_space_is_said_before_anything_is_written(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**20, 2**20, 2**14))
    with pytest.raises(InputError, match=r"no space: .*shards needs 0\.\d MiB and 0\.0 MiB are free"):
        run(configure(fresh, {}), fresh)
    assert list((fresh / ".rcm").rglob("*.safetensors")) == []
    assert not (fresh / "runs/trajectories").exists()


def test_what_the_stage_reads_is_made_by_others(fresh: Path) -> None:
    (fresh / "runs/prompts/prompts.parquet").unlink()
    with pytest.raises(
        InputError, match=r"runs/prompts/prompts\.parquet does not exist; make it with `dvc repro"
    ):
        run(configure(fresh, {}), fresh)
    (fresh / "runs/teacher/teacher.json").unlink()
    with pytest.raises(InputError, match=r"teacher\.json does not exist; make it with `dvc repro teacher`"):
        run(configure(fresh, {}), fresh)


def test_a_target_that_refuses_us_is_said_before_anything_is_computed(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorise(monkeypatch)
    with Refusing.serve() as endpoint:
        params = configure(fresh, {"trajectories.target": "s3://bucket/x", "trajectories.endpoint": endpoint})
        with pytest.raises(InputError, match=r"s3://bucket at .* refused the credentials"):
            trajectories.run(params, fresh, Interrupted(fresh, 0))
    assert not (fresh / "runs/trajectories").exists()
