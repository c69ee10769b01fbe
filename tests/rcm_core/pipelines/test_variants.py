"""Weights of a variant are loaded on request, by every loader and in every form."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from tiny import prepare
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.errors import InputError
from rcm_core.models import sd3
from rcm_core.pipelines.teacher_folder import verified_pipeline
from rcm_core.pipelines.variants import plain_view
from rcm_core.samplers.jobs import Teacher
from rcm_core.stages import teacher
from rcm_core.storage.files import read_json, sha256_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3") / "whole"
    build("sd3", folder)
    return folder


@pytest.fixture
def both(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline with plain weights and a variant of each part: the network's in shards, none of the second CLIP."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    monkeypatch.setenv("RCM_CACHE", str(tmp_path / "cache"))
    shutil.copytree(whole, tmp_path / "both")
    kinds: dict[str, Any] = {
        "transformer": SD3Transformer2DModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }  # fmt: skip
    for part, kind in kinds.items():
        model = kind.from_pretrained(whole / part).bfloat16()
        size = "20KB" if part == "transformer" else "1GB"
        model.save_pretrained(tmp_path / "both" / part, variant="bf16", max_shard_size=size)
    assert len(list((tmp_path / "both/transformer").glob("*.bf16-*.safetensors"))) > 1
    return tmp_path / "both"


def test_every_loader_loads_the_variant(both: Path, whole: Path) -> None:
    view = plain_view(both, "bf16")
    assert plain_view(both, "bf16") == view
    sd3.check_folder(view)
    plain, other = (sd3.load_network(f).state_dict() for f in (whole, view))
    assert all(torch.equal(plain[name].bfloat16().float(), value) for name, value in other.items())
    codecs = sd3.load_codec(view), sd3.load_codec(whole)
    first, second = (codec.encode_text(["three"])["text"] for codec in codecs)
    torch.testing.assert_close(first, second, rtol=0.05, atol=0.05)
    assert not torch.equal(first, second)
    pixels = [codec.decode(torch.ones(1, 4, 1, 4, 4)) for codec in codecs]
    assert not torch.equal(*pixels)
    # a teacher that changes is a new view
    shutil.copy(whole / "vae/config.json", both / "vae/config.json")
    assert plain_view(both, "bf16") != view


def test_a_variant_that_is_absent_is_said(both: Path, whole: Path) -> None:
    with pytest.raises(
        InputError, match=r"no weights of the variant 'fp16', only 'bf16', plain ones; set teacher"
    ):
        plain_view(both, "fp16")
    with pytest.raises(InputError, match=r"no weights of the variant 'fp16', only plain ones; set teacher"):
        plain_view(whole, "fp16")


def test_the_stages_read_the_variant(
    both: Path, tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("transformer", "vae", "text_encoder", "text_encoder_3"):  # a download of only the variant
        for name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
            (both / part / name).unlink(missing_ok=True)
    workspace = tmp_path / "workspace"
    prepare(workspace, values)
    given = {"source": str(both), "family": "sd3", "shape": [4, 1, 8, 6], "mini": None, "licence": "unknown"}
    params = configure(workspace, {f"teacher.{k}": v for k, v in given.items()})
    with pytest.raises(InputError, match=r"only the variant bf16: set teacher\.variant to bf16"):
        teacher.run(params, workspace, LocalExecutor(workspace))
    params = configure(workspace, {"teacher.variant": "bf16"})
    teacher.run(params, workspace, LocalExecutor(workspace))
    facts = read_json(workspace / "runs/teacher/teacher.json", "teacher")
    assert facts["variant"] == "bf16"
    view = verified_pipeline(workspace)
    assert sha256_folder(view) == facts["hash"]
    assert Teacher.read(workspace).folder == str(view)
    shutil.rmtree(tmp_path / "cache")  # as on another machine
    assert verified_pipeline(workspace) == view
    params = configure(workspace, {"teacher.source": "mini"})
    with pytest.raises(InputError, match=r"teacher\.variant = 'bf16'|teacher\.mini is null"):
        teacher.run(params, workspace, LocalExecutor(workspace))
