"""Imported samples instead of the teacher's: the same store, resumable, refused early if they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import others
import pandas as pd
import pytest
import torch
import yaml
from imports import PIXELS, SHAPES, TEXT, by_file, configured, copy_of, run
from object_store import BUCKET, authorise, object_store
from safetensors.torch import load_file
from tiny import ROOT
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.data import image_folder, importer
from rcm_core.data.trajectory_store import Store, shard_name
from rcm_core.errors import InputError
from rcm_core.pipelines.teacher_folder import pipeline_of
from rcm_core.samplers.jobs import Teacher, codec_of, conditions
from rcm_core.stages import train, trajectories
from rcm_core.storage.files import sha256, sha256_folder

CPU = torch.device("cpu")


class Killed(LocalExecutor):
    """Stop after ``after`` shards; headers are read completely."""

    def __init__(self, workspace: Path, after: int) -> None:
        super().__init__(workspace)
        self.after = after

    def map(self, function: Any, items: Any, label: str, *, device: str = "cpu") -> Iterator[Any]:
        if label != "trajectories":
            yield from super().map(function, items, label, device=device)
            return
        yield from super().map(function, items[: self.after], label, device=device)
        raise KeyboardInterrupt


@pytest.fixture
def workspace(teachers: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy with the family that the test requests (``indirect``)."""
    return copy_of(teachers(getattr(request, "param", "sd3")), tmp_path / "workspace")


def test_pictures_with_captions_become_the_store_that_training_reads(workspace: Path, tmp_path: Path) -> None:
    shown = others.pictures(tmp_path / "mine", 10, *PIXELS["sd3"])
    store = run(workspace, tmp_path / "mine")
    teacher = Teacher.read(workspace)
    codec = codec_of(teacher.folder, teacher.family)
    assert len(store) == 10
    assert list(store.frame["sample"]) == list(range(10))
    found = by_file(store)
    prompts = dict(zip(store.frame["file"], store.frame["prompt"]))
    for i in range(10):
        name = next(n for n in found if f"{i:03d}." in n)
        assert prompts[name] == f"picture number {i}"
        text = conditions(teacher, (prompts[name],), CPU)
        for key, value in text.items():
            # encoded alone and among others of its shard: sums over a batch of another size, a few float32 roundings
            torch.testing.assert_close(found[name][f"condition.{key}"], value[0], rtol=1e-4, atol=1e-5)
        if i % 2 and name.endswith(
            ".png"
        ):  # the requested height but too wide: the middle, unscaled and lossless
            left = i
            middle = shown[i][:, left : left + PIXELS["sd3"][1]]
            pixels = torch.from_numpy(middle.copy()).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
            assert torch.equal(found[name]["x0"], codec.encode(pixels)[0])
    assert sorted(store.frame["file"]) != list(
        store.frame["file"]
    )  # shuffled: the last are held out for probes
    assert [len(f) for f in store.frame.groupby("shard")["row"].apply(list)] == [4, 4, 2]


def test_the_same_source_is_the_same_bytes_and_another_is_another_fingerprint(
    workspace: Path, tmp_path: Path
) -> None:
    others.pictures(tmp_path / "mine", 6, *PIXELS["sd3"])
    out, inputs = workspace / "runs/trajectories", []
    digests = []
    for change in (None, None, "caption", "picture"):
        if change == "caption":
            (tmp_path / "mine/001.txt").write_text("another")
        if change == "picture":
            others.picture(tmp_path / "mine/001.jpg", 20, 30, seed=5)
        run(workspace, tmp_path / "mine")
        digests.append([sha256_folder(out / "shards"), sha256(out / "manifest.parquet")])
        inputs.append(json.loads((out / "record.json").read_text())["inputs"][importer.KEY])
        shutil.rmtree(out)
    assert digests[0] == digests[1]
    assert inputs[0] == inputs[1]
    assert len(set(inputs)) == 3
    assert len({d[0] for d in digests}) == 3


@pytest.mark.parametrize("workspace", ["cosmos"], indirect=True)
def test_clips_are_cut_to_the_frames_that_the_latents_need(workspace: Path, tmp_path: Path) -> None:
    """Two latent frames need five frames of a file; half of the rate means every second frame."""
    others.clip(tmp_path / "clips/a.mp4", 12, *PIXELS["cosmos"])
    (tmp_path / "clips/metadata.csv").write_text('file_name,text\na.mp4,"a film, brightening"\n')
    teacher, seen = Teacher.read(workspace), []
    for fps in (None, 8.0):
        store = run(workspace, tmp_path / "clips", fps=fps)
        assert list(store.frame["prompt"]) == ["a film, brightening"]
        wanted = image_folder.Wanted(3, 5, *PIXELS["cosmos"], fps)
        pixels = image_folder.pixels(trajectories.Place(str(tmp_path / "clips")), "a.mp4", wanted)
        seen.append(store.sample(0)["x0"])
        assert torch.equal(seen[-1], codec_of(teacher.folder, teacher.family).encode(pixels)[0])
    assert not torch.equal(*seen)


@pytest.mark.parametrize("workspace", ["wan"], indirect=True)
@pytest.mark.parametrize("embedded", [True, False])
def test_tars_of_latents_are_taken_as_they_are(workspace: Path, tmp_path: Path, embedded: bool) -> None:
    others.tars(tmp_path / "tars", SHAPES["wan"], TEXT if embedded else None)
    store = run(workspace, tmp_path / "tars")
    assert len(store) == 9
    found, teacher = by_file(store), Teacher.read(workspace)
    for number in range(9):
        rng = torch.Generator().manual_seed(number)
        latent = torch.randn(SHAPES["wan"], generator=rng).bfloat16().float()
        text = torch.randn(TEXT, generator=rng).bfloat16().float()
        if not embedded:
            text = conditions(teacher, (f"prompt number {number}",), CPU)["text"][0]
        mine = found[f"shard_{int(number > 4):06d}.tar/{number:09d}"]
        assert torch.equal(mine["x0"], latent)
        torch.testing.assert_close(
            mine["condition.text"], text, rtol=1e-5, atol=1e-5
        )  # batches of other sizes
        assert mine["x0"].dtype == mine["condition.text"].dtype == torch.float32


def test_an_interrupted_import_makes_only_the_missing_shards(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others.pictures(tmp_path / "mine", 10, *PIXELS["sd3"])
    params = configured(workspace, tmp_path / "mine")

    with pytest.raises(KeyboardInterrupt):
        trajectories.run(params, workspace, Killed(workspace, 2))
    assert not (workspace / "runs/trajectories").exists()
    (state,) = (workspace / ".rcm/state").glob("trajectories-*/")
    before = [(state / "shards" / shard_name(i)).stat().st_ino for i in range(2)]
    made: list[str] = []
    load = importer.load
    monkeypatch.setattr(importer, "load", lambda *args: made.append("") or load(*args))
    with pytest.raises(KeyboardInterrupt):
        trajectories.run(params, workspace, Killed(workspace, 3))
    assert [(state / "shards" / shard_name(i)).stat().st_ino for i in range(2)] == before
    assert len(made) == 1
    trajectories.run(params, workspace, LocalExecutor(workspace))
    assert len(made) == 1
    assert not state.exists()
    assert len(Store(workspace / "runs/trajectories", tmp_path)) == 10


@pytest.mark.parametrize("method", ["sana_sprint", "scm"])
def test_a_student_is_trained_on_what_was_imported(workspace: Path, tmp_path: Path, method: str) -> None:
    """The imported pictures are real data for the discriminator and the path, each with its own caption."""
    others.pictures(tmp_path / "mine", 12, *PIXELS["sd3"])
    chosen = yaml.safe_load((ROOT / f"conf/method/{method}.yaml").read_text())
    own = {"warmup": 2} | ({"blocks": [0, 1]} if method == "sana_sprint" else {"learn_from": "data"})
    settings = {
        "method": chosen["method"] | own, "sampler": chosen["sampler"], "trajectories.real": True,
        "train.lr": chosen["train"]["lr"], "train.iterations": 4, "train.batch": 4, "train.candidate_every": 4,
        "train.health.probe_every": 2, "train.health.probe_samples": 4,
    }  # fmt: skip
    store = run(workspace, tmp_path / "mine", settings)
    assert [name for name in store.names if name.startswith("real.")] == []  # nothing is kept twice
    params = configure(workspace, {})
    train.run(params, workspace, LocalExecutor(workspace))
    curves = pd.read_csv(workspace / "runs/train/curves.csv")
    assert np.isfinite(curves["loss"].dropna()).all()  # rows used only for probes have none
    assert curves["step"].max() == 4
    weights = load_file(
        next((workspace / "runs/train/candidates").rglob("diffusion_pytorch_model.safetensors"))
    )
    teacher = load_file(pipeline_of(workspace) / "transformer/diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(weights[name], value) for name, value in teacher.items())


@pytest.mark.parametrize("kind", ["pictures", "tars"])
def test_a_source_on_s3(
    teachers: Callable[[str], Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(teachers("sd3" if kind == "pictures" else "wan"), workspace)
    if kind == "pictures":
        others.pictures(tmp_path / "mine", 5, *PIXELS["sd3"])
    else:
        others.tars(tmp_path / "mine", SHAPES["wan"], TEXT)
    here = by_file(run(workspace, tmp_path / "mine"))
    authorise(monkeypatch)
    with object_store() as endpoint:
        place = trajectories.Place(f"s3://{BUCKET}/data", endpoint)
        system, root = place.open()
        system.put(f"{tmp_path / 'mine'}/", root, recursive=True)
        there = by_file(run(workspace, place.url, endpoint=endpoint))
        assert here.keys() == there.keys()
        assert all(torch.equal(here[n][k], there[n][k]) for n in here for k in here[n])
        with pytest.raises(InputError, match=rf"folder names {place.url}x, which does not exist"):
            run(workspace, f"{place.url}x", endpoint=endpoint)


def test_pictures_that_are_enlarged_are_counted(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others.pictures(tmp_path / "mine", 4, *PIXELS["sd3"])
    others.picture(tmp_path / "mine/001.jpg", 8, 30)
    run(workspace, tmp_path / "mine")
    said = capsys.readouterr().out
    assert "1 of 4 files are smaller than 12 x 16 pixels and will be enlarged, first: 001.jpg" in said
    assert f"trajectories: 4 samples in {tmp_path / 'mine'}" in said
