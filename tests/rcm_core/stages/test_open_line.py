"""All stages on an external teacher, as a user runs them: arbitrary prompts, the user's own judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from families import build
from safetensors.torch import load_file
from tiny import run_all, tiny_values
from tiny_clip import COLOURS, build_clip
from workspaces import change

from infra.executors.local import LocalExecutor
from rcm_core.config.load import load_params
from rcm_core.errors import InputError
from rcm_core.samplers.jobs import sample_pipeline

OBJECTS = ("cube", "ball", "chair", "cat", "car", "tree", "lamp", "boat")


def open_values(folder: Path, family: str) -> dict[str, Any]:
    """Return params.yaml for a tiny pipeline of ``family``; write the pipeline, the judge and the prompts."""
    shape = build(family, folder / "teacher")
    build_clip(folder / "judge", steps=5)
    asked = [f"a {colour} {thing}" for thing in OBJECTS for colour in COLOURS]
    splits = {"train": asked[:16], "validation": asked[16:24], "test": asked[24:]}
    for name, prompts in splits.items():
        (folder / f"{name}.txt").write_text("\n".join(prompts))
    return change(
        tiny_values(),
        {
            "teacher.source": "teacher", "teacher.mini": None, "teacher.family": family, "teacher.data": "open",
            "teacher.shape": list(shape), "teacher.steps": 3, "teacher.guidance": 2.0,
            "prompts.train": "train.txt", "prompts.validation": "validation.txt", "prompts.test": "test.txt",
            "judge": {"network": "judge"},
            "trajectories.samples": 20, "trajectories.shard_size": 8, "trajectories.batch": 3,
            "train.iterations": 2, "train.candidate_every": 2, "train.batch": 4, "train.health.probe_samples": 4,
            "method.warmup": 0, "select.samples": 20, "select.batch": 5, "select.steps": [1, 2],
            "evaluate.samples": 24, "evaluate.batch": 7, "evaluate.keep_pixels": 6, "evaluate.steps": [1, 2],
            "evaluate.timing_samples": 1, "report.prompts": 3,
        },
    )  # fmt: skip


@pytest.mark.parametrize("family", ["sd3", "cosmos"])
def test_from_a_given_teacher_to_a_published_student(family: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(open_values(tmp_path, family)))
    run_all(tmp_path, load_params(tmp_path / "params.yaml"), LocalExecutor(tmp_path))
    metrics = json.loads((tmp_path / "runs/evaluate/metrics.json").read_text())
    clip = {"subject_consistency"} if family == "cosmos" else set()
    numbers = {
        "frechet_teacher",
        "accuracy",
        "text_similarity",
        "diversity",
        "network_calls",
        "seconds_per_sample",
    }
    for name in ("teacher", "teacher_1", "student_1", "student_2"):
        assert set(metrics[name]) == numbers | clip
        kept = load_file(tmp_path / f"runs/evaluate/samples/{name}.safetensors")["pixels"]
        assert len(kept) == 6
        assert kept.shape[1] == 3
    assert metrics["protocol"]["finding"] == "finds the own prompt among all that were sampled"
    report = (tmp_path / "runs/report/report.html").read_text()
    assert "What else the judge measures" in report
    assert "real images" not in report.split("<h2>Protocol")[0]
    card = (tmp_path / "runs/publish/pipeline/README.md").read_text()
    assert "| sampler | frechet_teacher | accuracy | text_similarity | diversity |" in card
    pixels = sample_pipeline(tmp_path / "runs/publish/pipeline", ["a red cube"], 2, 0)
    assert pixels.shape[1] == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"judge": None}, r"needs judge\.network, a CLIP or SigLIP in transformers layout; name its folder"),
        ({"trajectories.real": True}, r"has no images of its own for trajectories\.real; name some in traj"),
        (
            {"select.metric": "frechet"},
            r"for select\.metric = 'frechet'; set it to frechet_teacher or accuracy",
        ),
        (
            {"teacher.gate": {"judge_accuracy": 0.9, "teacher_accuracy": 0.9, "samples": 10}},
            r"set teacher\.mini and teacher\.gate to null",
        ),
        ({"teacher.data": "digits"}, r"teacher\.data = 'digits' has a judge of its own; set judge to null"),
    ],
)
def test_what_prompts_alone_cannot_give_is_refused_at_the_door(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    values = change(open_values(tmp_path, "sd3"), settings)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=said):
        load_params(tmp_path / "params.yaml")
