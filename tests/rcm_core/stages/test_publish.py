"""A published folder that works as its card says, and a copy that is complete or absent."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from dvc.repo import Repo
from object_store import BUCKET, authorise, object_store
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.errors import InputError
from rcm_core.evaluation.report.model_card import settings_table
from rcm_core.pipelines.teacher_folder import is_ours
from rcm_core.samplers.jobs import noise, sample_pipeline
from rcm_core.stages import publish
from rcm_core.storage.files import read_json, sha256_folder
from rcm_core.storage.links import SMALL
from rcm_core.storage.s3 import filesystem


def run(workspace: Path, settings: dict[str, Any]) -> dict[str, Any]:
    params = configure(workspace, {f"publish.{k}": v for k, v in settings.items()})
    publish.run(params, workspace, LocalExecutor(workspace))
    record: dict[str, Any] = json.loads((workspace / "runs/publish/record.json").read_text())
    return record


@pytest.mark.filterwarnings("ignore:.*")  # warnings of diffusers on loading; only the picture matters here
def test_the_card_s_own_call_draws_what_we_draw(tiny_run: Path) -> None:
    folder = tiny_run / "runs/publish/pipeline"
    card = (folder / "README.md").read_text()
    call = re.search(r'"a prompt", (.*?)\n    \)', card, re.DOTALL)
    assert call is not None
    options = {k: float(v) if "." in v else int(v) for k, v in re.findall(r"(\w+)=([\d.]+)", call[1])}
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    latents = noise(0, (0,), 1, (1, 1, 8, 8))[0]
    shown = pipe("the digit 7", latents=latents, output_type="latent", **options).frames
    ours = sample_pipeline(folder, ["the digit 7"], 1, 0)
    # the same float32 formulas in another order
    torch.testing.assert_close(((shown + 1) / 2).clamp(0, 1), ours, rtol=1e-4, atol=1e-5)


def test_the_card_says_what_it_is_and_how_good(tiny_run: Path) -> None:
    folder = tiny_run / "runs/publish/pipeline"
    card, facts = (folder / "README.md").read_text(), json.loads((folder / "student.json").read_text())
    quality = json.loads((tiny_run / "runs/evaluate/quality.json").read_text())
    assert card.startswith("---\nlicense: apache-2.0\n")
    teacher = json.loads((tiny_run / "runs/teacher/teacher.json").read_text())
    for said in (
        teacher["hash"],
        facts["version"],
        quality["protocol"]["hash"][:12],
        facts["choice"]["name"],
    ):
        assert said in card
    for row in ("teacher", "student_1", "student_2", "student_4"):
        value = quality[row]["frechet"]
        assert f"| {row} | {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in card
    assert f"| method | {facts['method']['name']} |" in card
    assert f"| student_every | `{facts['method']['student_every']}` |" in card
    assert "{'" not in card
    settings = {"name": "m", "a": {"b": None, "c": [1, 2]}, "d": "x|y", "e": {}}
    assert settings_table(settings).splitlines() == [
        "| a.b | `null` |", "| a.c | `[1, 2]` |", r'| d | `"x\|y"` |', "| e | `{}` |",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*")  # diffusers' own, on loading
@pytest.mark.parametrize("steps", [2, 3])
def test_the_sampler_is_in_the_scheduler_alone_and_all_use_it(workspace: Path, steps: int) -> None:
    """Euler steps need only the initial noise, so a stock pipeline and our sampler agree at any number of steps."""
    place = workspace / "runs/select/selection.json"
    selection = json.loads(place.read_text()) | {
        "sampler": {"kind": "euler", "times": [[1.5708, 1.2], [1.45, 1.1, 0.4]]},
        "steps": [2, 3],
    }
    place.write_text(json.dumps(selection))
    run(workspace, {})
    folder = workspace / "runs/publish/pipeline"
    assert "angles" not in json.loads((folder / "student.json").read_text())
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert (config["kind"], config["times"]) == ("euler", [[torch.pi / 2, 1.2], [1.45, 1.1, 0.4]])
    card = (folder / "README.md").read_text()
    assert "num_inference_steps=2," in card
    assert "| sampler | euler; angles 1.5708, 1.2000; 1.4500, 1.1000, 0.4000 |" in card
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    shown = pipe(
        "the digit 7", latents=noise(0, (0,), 1, (1, 1, 8, 8))[0], output_type="latent", height=64, width=64,
        num_frames=1, guidance_scale=1.0, max_sequence_length=12, num_inference_steps=steps,
    ).frames  # fmt: skip
    ours = sample_pipeline(folder, ["the digit 7"], steps, 0)
    # the same float32 formulas in another order, through at most three calls
    torch.testing.assert_close(((shown + 1) / 2).clamp(0, 1), ours, rtol=1e-4, atol=2e-5)
    with pytest.raises(InputError, match=r"1 step asked for, but sampler\.times has lists for 2, 3"):
        sample_pipeline(folder, ["the digit 7"], 1, 0)


def test_a_scheduler_of_another_kind_is_refused(workspace: Path) -> None:
    place = workspace / "runs/publish/pipeline/scheduler/scheduler_config.json"
    place.write_text(json.dumps({"angles": [1.5707963267948966, 1.3]}))
    with pytest.raises(
        InputError, match=r"scheduler_config\.json has no sampler, .*`dvc repro publish` makes"
    ):
        sample_pipeline(workspace / "runs/publish/pipeline", ["the digit 7"], 1, 0)


def test_the_version_is_of_what_is_published(workspace: Path) -> None:
    first = run(workspace, {})["version"]
    assert run(workspace, {"name": "another"})["version"] == first
    config = workspace / "runs/select/transformer/config.json"
    config.write_text(config.read_text() + "\n")
    assert run(workspace, {})["version"] != first


def test_a_local_target_gets_one_folder_per_version(workspace: Path) -> None:
    record = run(workspace, {"target": "shelf/"})  # relative to the workspace
    copy = workspace / "shelf/student" / record["version"]
    assert record["published"] == str(copy)
    assert sha256_folder(copy) == sha256_folder(workspace / "runs/publish/pipeline")
    (copy / "note").write_text("a version that is there is left alone")
    run(workspace, {"target": str(workspace / "shelf")})
    assert (copy / "note").exists()
    assert [p.name for p in (workspace / "shelf/student").iterdir()] == [record["version"]]


def test_a_target_on_s3_is_whole_or_says_why(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authorise(monkeypatch)
    with object_store() as endpoint:
        record = run(workspace, {"target": f"s3://{BUCKET}/shelf/", "endpoint": endpoint})
        system, root = filesystem(record["published"], endpoint)
        out = workspace / "runs/publish/pipeline"
        for path in [p for p in out.rglob("*") if p.is_file()]:
            assert system.cat_file(f"{root}/{path.relative_to(out).as_posix()}") == path.read_bytes()
        # an interrupted copy has no card yet, and is completed
        system.rm_file(f"{root}/README.md")
        system.rm_file(f"{root}/model_index.json")
        run(workspace, {"target": f"s3://{BUCKET}/shelf", "endpoint": endpoint})
        assert len(system.find(root)) == len([p for p in out.rglob("*") if p.is_file()])
        with pytest.raises(InputError, match=r"bucket s3://nowhere at .* does not exist"):
            run(workspace, {"target": "s3://nowhere/shelf", "endpoint": endpoint})


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC's own
def test_the_files_of_a_given_teacher_stay_as_they_are_under_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC makes cached files read-only, also through hard links."""
    teacher, project = tmp_path / "given", tmp_path / "project"
    large = teacher / "text_encoder/model.safetensors"
    network = project / "runs/select/transformer/diffusion_pytorch_model.safetensors"
    for path in (large, network):
        path.parent.mkdir(parents=True)
        path.write_bytes(path.name[:1].encode() * (SMALL + 1))
    (teacher / "model_index.json").write_text(json.dumps({"text_encoder": ["transformers", "T5"]}))
    modes = {path: path.stat().st_mode for path in (large, large.parent, teacher / "model_index.json")}
    out = project / "runs/publish/pipeline"
    publish._place(out, teacher, is_ours({"source": str(teacher)}), network.parent)
    monkeypatch.chdir(project)
    with Repo.init(str(project), no_scm=True) as repo, repo.config.edit() as config:
        config["cache"]["type"] = "hardlink,reflink,symlink,copy"
    with Repo(str(project)) as repo:
        repo.add(str(out))
    published = out / "text_encoder/model.safetensors"
    assert not published.stat().st_mode & 0o222
    assert {path: path.stat().st_mode for path in modes} == modes
    assert large.stat().st_nlink == 1
    assert published.read_bytes() == large.read_bytes()


def test_only_files_that_we_wrote_are_ours() -> None:
    for source, expected in (
        ("mini", True),
        ("s3://bucket/a", True),
        ("/models/wan", False),
        ("given", False),
    ):
        assert is_ours({"source": source}) is expected


def test_what_is_published_before_is_kept_when_the_disk_is_full(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sha256_folder(workspace / "runs/publish")
    usage = shutil.disk_usage(workspace)._replace(free=2**10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"no space: .*runs/publish needs"):
        run(workspace, {})
    assert sha256_folder(workspace / "runs/publish") == before


def test_a_folder_that_is_no_published_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"student\.json does not exist; make it with `dvc repro publish`"):
        sample_pipeline(tmp_path, ["the digit 7"], 1, 0)


def test_more_steps_than_the_student_has_are_refused(tiny_run: Path) -> None:
    folder = tiny_run / "runs/publish/pipeline"
    assert read_json(folder / "student.json", "publish")["steps"] == [1, 2, 4]
    with pytest.raises(InputError, match=r"5 steps asked for, but sampler\.times has lists for 1, 2, 3, 4"):
        sample_pipeline(folder, ["the digit 7"], 5, 0)
