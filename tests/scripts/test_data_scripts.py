"""The scripts that generated the files in data/ still generate them, or still run."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rcm_core.evaluation.judges.detector import Detector
from rcm_core.models import wan
from rcm_core.storage.files import read_json, sha256, sha256_folder
from rcm_core.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def run(script: str, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / "scripts/data" / script), run_name="__main__")


@pytest.mark.parametrize(
    ("script", "lists"),
    [
        ("digits_prompts.py", ("digits", "moving-digits")),
        ("scenes_prompts.py", ("scenes",)),
        ("scenes_video_prompts.py", ("scenes-video",)),
        ("open_prompts.py", ("open",)),
    ],
)
def test_prompt_lists_are_those_that_the_script_writes(
    script: str, lists: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(script)
    for name in lists:
        assert sha256_folder(tmp_path / "data/prompts" / name) == sha256_folder(ROOT / "data/prompts" / name)


def test_the_detector_can_be_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    try:
        with torch.random.fork_rng():
            run("train_detector.py", "--steps", "3")
    finally:
        torch.set_num_threads(threads)
    path = tmp_path / "data/scenes/detector.safetensors"
    Detector().load_state_dict(load_file(path))
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == sha256(path)


def test_what_recipes_take_from_the_repository_is_what_they_name() -> None:
    for path in sorted((ROOT / "conf/teacher").glob("*.yaml")):
        teacher = yaml.safe_load(path.read_text())["teacher"]
        if teacher.get("source", "").startswith("data/"):
            assert sha256_folder(ROOT / teacher["source"]) == teacher["hash"]


def test_a_shipped_teacher_is_the_trained_one_in_half_the_bytes(tiny_run: Path, tmp_path: Path) -> None:
    run("ship_teacher.py", str(tmp_path / "teacher"), "--runs", str(tiny_run / "runs"))
    shipped, trained = tmp_path / "teacher/pipeline", tiny_run / "runs/teacher/pipeline"
    record = read_json(tmp_path / "teacher/record.json", "teacher")
    assert record["shipped_hash"] == sha256_folder(shipped)
    assert record["trained_hash"] == sha256_folder(trained)
    assert record["test"]["samples"] == len(RunFolder.of(tiny_run).prompts("test"))
    assert 0 <= record["test"]["accuracy"] <= 1
    assert (shipped / WEIGHTS).stat().st_size < 0.6 * (trained / WEIGHTS).stat().st_size
    wan.check_folder(shipped)
    ours, theirs = (wan.load_network(folder).state_dict() for folder in (shipped, trained))
    assert all(value.dtype == torch.float32 for value in ours.values())
    for name, value in theirs.items():
        # bfloat16 has 8 significant bits: rounding is off by at most 2^-8 of the value
        assert torch.allclose(ours[name], value, rtol=2**-8, atol=1e-30)
    others = [
        p.relative_to(trained) for p in trained.rglob("*") if p.is_file() and p.name != Path(WEIGHTS).name
    ]
    assert all((shipped / name).read_bytes() == (trained / name).read_bytes() for name in others)
