"""A teacher from a folder, from S3, or trained in the run; invalid ones are refused before they are stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, authorise, object_store
from safetensors.torch import load_file, save_file
from tiny import prepare
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.errors import InputError
from rcm_core.pipelines.teacher_folder import pipeline_of, verified_pipeline
from rcm_core.stages import teacher
from rcm_core.storage.files import read_json, sha256_folder
from rcm_core.storage.s3 import filesystem


@pytest.fixture
def bare(tmp_path: Path, values: dict[str, Any]) -> Path:
    """A workspace without any finished stage."""
    prepare(tmp_path / "workspace", values)
    return tmp_path / "workspace"


@pytest.fixture
def given(tiny_run: Path, tmp_path: Path) -> Path:
    """An external teacher."""
    shutil.copytree(tiny_run / "runs/teacher/pipeline", tmp_path / "given")
    return tmp_path / "given"


def run(workspace: Path, source: Path | str, **settings: Any) -> dict[str, Any]:
    changed = {f"teacher.{k}": v for k, v in settings.items()}
    params = configure(workspace, {"teacher.source": str(source), "teacher.mini": None, **changed})
    teacher.run(params, workspace, LocalExecutor(workspace))
    return read_json(workspace / "runs/teacher/teacher.json", "teacher")


def test_a_given_folder_is_referenced_not_copied(bare: Path, given: Path, tiny_run: Path) -> None:
    facts = run(bare, given, licence="unknown")
    assert list((bare / "runs/teacher/pipeline").iterdir()) == []
    assert pipeline_of(bare) == verified_pipeline(bare) == given
    assert facts["hash"] == sha256_folder(given)
    assert "endpoint" not in facts
    assert facts["source"] == str(given)
    assert facts["gate"] is None
    theirs = read_json(tiny_run / "runs/teacher/teacher.json", "teacher")
    assert facts["hash"] == theirs["hash"]
    assert list((bare / ".rcm/state").glob("*/")) == []


def test_a_relative_folder_lies_in_the_workspace(bare: Path, given: Path) -> None:
    shutil.copytree(given, bare / "data/given")
    facts = run(bare, "data/given", licence="unknown")
    assert facts["hash"] == sha256_folder(given)
    assert facts["source"] == "data/given"


def test_later_stages_refuse_a_given_teacher_that_changed_or_is_gone(bare: Path, given: Path) -> None:
    digest = run(bare, given)["hash"]
    (given / "README.md").write_text("changed meanwhile")
    with pytest.raises(
        InputError, match=rf"the teacher in {given} has content hash .*was made from {digest}"
    ):
        verified_pipeline(bare)
    (given / "model_index.json").unlink()
    with pytest.raises(InputError, match=rf"teacher\.source '{given}' holds no model_index\.json"):
        pipeline_of(bare)
    shutil.rmtree(given)
    with pytest.raises(InputError, match=r"is neither 'mini' nor a folder that exists"):
        pipeline_of(bare)


def test_a_folder_of_links_is_identified_by_what_they_point_to(
    bare: Path, given: Path, tmp_path: Path
) -> None:
    """The layout is that of snapshots in the cache of huggingface_hub."""
    linked = tmp_path / "snapshot"
    for path in [p for p in given.rglob("*") if p.is_file()]:
        link = linked / path.relative_to(given)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert run(bare, linked)["hash"] == sha256_folder(given)


def test_a_teacher_on_s3_is_fetched_whole(bare: Path, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authorise(monkeypatch)
    with object_store() as endpoint:
        system, root = filesystem(f"s3://{BUCKET}/teachers/one", endpoint)
        for path in [p for p in given.rglob("*") if p.is_file()]:
            system.put_file(str(path), f"{root}/{path.relative_to(given).as_posix()}")
        facts = run(bare, f"s3://{BUCKET}/teachers/one/", endpoint=endpoint)
        assert facts["hash"] == sha256_folder(given) == sha256_folder(verified_pipeline(bare))
        assert facts["endpoint"] == endpoint
        assert list((bare / "runs/teacher/pipeline").iterdir()) == []
        kept = pipeline_of(bare)
        system.rm(
            f"{root}/README.md"
        )  # a stored teacher is looked up by its hash, not fetched again from its location
        assert pipeline_of(bare) == kept
        with pytest.raises(InputError, match="is neither 'mini' nor a folder that exists"):
            run(bare, f"s3://{BUCKET}/teachers/two", endpoint=endpoint)


def test_a_hash_that_is_expected_is_held_to(bare: Path, given: Path) -> None:
    digest = sha256_folder(given)
    assert run(bare, given, hash=digest)["hash"] == digest
    (given / "README.md").write_text("changed meanwhile")
    with pytest.raises(
        InputError, match=rf"has content hash .*, teacher\.hash expects {digest}; it has changed"
    ):
        run(bare, given, hash=digest)
    # the earlier result is not lost
    assert read_json(bare / "runs/teacher/teacher.json", "teacher")["hash"] == digest


def test_a_source_that_is_nowhere(bare: Path) -> None:
    with pytest.raises(InputError, match=r"teacher\.source '.*nowhere' is neither 'mini' nor a folder"):
        run(bare, bare / "nowhere")
    with pytest.raises(
        InputError, match=r"teacher\.source is mini but teacher\.mini is null; use conf/teacher"
    ):
        run(bare, "mini")
    assert not (bare / "runs").exists()


def test_a_teacher_of_another_family_is_refused_and_nothing_is_kept(bare: Path, given: Path) -> None:
    config = given / "transformer/config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"_class_name": "CosmosTransformer3DModel"})
    )
    with pytest.raises(InputError, match=r"holds a CosmosTransformer3DModel, but family wan needs"):
        run(bare, given)
    assert not (bare / "runs").exists()


def test_a_teacher_with_missing_or_extra_keys_is_refused(bare: Path, given: Path) -> None:
    path = given / "transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["extra"] = weights.pop("proj_out.bias")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"differs from its config\.json in 2 tensors, first: extra is"):
        run(bare, given)
    assert not (bare / "runs").exists()


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (
            {"judge_accuracy": 1.0, "teacher_accuracy": 0.0},
            r"the judge recognises \d+\.\d% of the held-out real",
        ),
        (
            {"judge_accuracy": 0.0, "teacher_accuracy": 0.9},
            r"the judge recognises the prompt in \d",
        ),
    ],
)
def test_a_teacher_below_its_gate_is_refused(
    bare: Path, given: Path, gate: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=f"{said}.*requires"):
        run(bare, given, gate={**gate, "samples": 30})
    assert not (bare / "runs/teacher/teacher.json").exists()


def test_a_teacher_that_passes_says_so(bare: Path, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = {"judge_accuracy": 0.9, "teacher_accuracy": 0.0, "samples": 30}
    facts = run(bare, given, gate=gate)
    assert facts["gate"]["judge_accuracy"] >= 0.9
    assert 0 <= facts["gate"]["teacher_accuracy"] <= 1
    assert "of 30 guided 4-step samples recognised" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"shape": [1, 1, 6, 8]},
            r"teacher\.shape is \[1, 1, 6, 8\], but images of digits have \[1, 1, 8, 8\]",
        ),
        ({"shape": [3, 1, 8, 8]}, r"teacher\.shape is \[3, 1, 8, 8\]"),
        ({"data": "moving_digits"}, r"images of moving_digits have \[1, 5, 8, 12\]"),
        ({"data": "moving_digits", "shape": [1, 5, 8, 12]}, "names no direction"),
        (
            {"mini.text_length": 3},
            r"prompt '.*' has \d+ tokens, but teacher\.mini\.text_length = 3 would cut it",
        ),
    ],
)
def test_a_mini_that_does_not_fit_its_data_is_refused(
    bare: Path, settings: dict[str, Any], said: str
) -> None:
    params = configure(bare, {f"teacher.{k}": v for k, v in settings.items()})
    with pytest.raises(InputError, match=said):
        teacher.run(params, bare, LocalExecutor(bare))
    assert not (bare / "runs").exists()


def test_a_gpu_that_is_absent_is_said(
    bare: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    params = configure(bare, {"teacher.device": "cuda"})
    with pytest.raises(
        InputError, match=r"device cuda was asked for, but torch .* sees no GPU here; set device"
    ):
        teacher.run(params, bare, LocalExecutor(bare))
    assert not (bare / "runs").exists()
