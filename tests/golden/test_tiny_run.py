"""The tiny pipeline end to end: its outputs, its determinism, and the use of its student by other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny import prepare, run_all, tiny_values

from infra.executors.local import LocalExecutor
from rcm_core.samplers.few_step import Sampler
from rcm_core.samplers.jobs import Job, Teacher, sample, sample_pipeline
from rcm_core.storage.files import sha256, sha256_folder

DETERMINISTIC = (
    "teacher/pipeline", "teacher/teacher.json", "prompts/prompts.parquet", "prompts/prompts.json",
    "trajectories/manifest.parquet", "trajectories/shards", "trajectories/negative.safetensors",
    "train/candidates", "train/curves.csv", "train/health.json", "select/transformer", "select/selection.json",
    "evaluate/samples", "evaluate/quality.json", "publish/pipeline",
)  # fmt: skip


def hashes(workspace: Path) -> dict[str, str]:
    paths = {name: workspace / "runs" / name for name in DETERMINISTIC}
    return {n: sha256_folder(p) if p.is_dir() else sha256(p) for n, p in paths.items()}


def test_two_runs_from_nothing_leave_the_same_bytes(tiny_run: Path, tmp_path: Path) -> None:
    run_all(tmp_path, prepare(tmp_path, tiny_values()), LocalExecutor(tmp_path))
    assert hashes(tmp_path) == hashes(tiny_run)


def test_metrics_hold_every_row_and_number_with_an_interval(tiny_run: Path) -> None:
    metrics = json.loads((tiny_run / "runs/evaluate/metrics.json").read_text())
    assert set(metrics) == {"teacher", "teacher_1", "student_1", "student_2", "student_4", "protocol"}
    for name in set(metrics) - {"protocol"}:
        row = metrics[name]
        for key in (
            "frechet", "frechet_teacher", "accuracy", "precision", "recall", "diversity", "seconds_per_sample",
            "network_calls",
        ):  # fmt: skip
            assert row[key]["low"] <= row[key]["value"] <= row[key]["high"], (name, key)
            assert row[key]["n"] >= 1
    assert metrics["teacher"]["network_calls"]["value"] == 8  # 4 steps, two calls each
    assert metrics["student_1"]["network_calls"]["value"] == 1
    assert len(metrics["protocol"]["hash"]) == 64


def test_every_stage_leaves_a_record(tiny_run: Path) -> None:
    for stage in ("teacher", "prompts", "trajectories", "train", "select", "evaluate", "report", "publish"):
        record = json.loads((tiny_run / "runs" / stage / "record.json").read_text())
        assert record["stage"] == stage
        assert record["seconds"] > 0
        assert record["peak_memory_bytes"] > 0
        assert record["versions"]["torch"] == torch.__version__
        assert all(len(digest) == 64 for digest in record["inputs"].values())


def test_nothing_live_is_left_behind(tiny_run: Path) -> None:
    assert [p for p in (tiny_run / ".rcm/state").iterdir() if p.is_dir()] == []
    assert list((tiny_run / "runs").rglob(".*")) == []


def test_candidates_are_checkpoints_times_ema_lengths(tiny_run: Path) -> None:
    names = {p.name for p in (tiny_run / "runs/train/candidates").iterdir()}
    assert names == {f"step_{s:06d}-ema_{e}" for s in (6, 12) for e in ("0.05", "0.1")}
    selection = json.loads((tiny_run / "runs/select/selection.json").read_text())
    assert {c["name"] for c in selection["candidates"]} == names
    assert sha256_folder(tiny_run / "runs/select/transformer") == sha256_folder(
        tiny_run / "runs/train/candidates" / selection["choice"]["name"] / "transformer"
    )


def test_the_split_that_chooses_is_not_the_one_that_reports(tiny_run: Path) -> None:
    frame = pd.read_parquet(tiny_run / "runs/prompts/prompts.parquet")
    asked = set(json.loads((tiny_run / "runs/evaluate/samples/prompts.json").read_text()))
    assert asked <= set(frame.loc[frame["split"] == "test", "prompt"])
    assert not asked & set(frame.loc[frame["split"] != "test", "prompt"])
    manifest = pd.read_parquet(tiny_run / "runs/trajectories/manifest.parquet")
    assert set(manifest["prompt"]) <= set(frame.loc[frame["split"] == "train", "prompt"])


@pytest.mark.filterwarnings("ignore:.*")  # warnings of diffusers on loading; only the picture matters here
def test_diffusers_loads_the_published_student_and_draws_what_we_draw(tiny_run: Path) -> None:
    folder = tiny_run / "runs/publish/pipeline"
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"height": 64, "width": 64, "num_frames": 1, "guidance_scale": 1.0, "max_sequence_length": 12}
    shown = pipe(
        "a handwritten seven", num_inference_steps=1, latents=latents, output_type="latent", **options
    ).frames
    teacher = Teacher.read(tiny_run)
    from rcm_core.models import wan
    from rcm_core.networks.denoiser import load_denoiser
    from rcm_core.samplers.few_step import sample_student

    student = load_denoiser(folder, wan)
    condition = wan.load_codec(folder).encode_text(["a handwritten seven"])
    ours = sample_student(student, latents[None], condition, (torch.pi / 2,))
    # the same float32 formulas in another order: differences are of the last bits
    torch.testing.assert_close(shown, ours, rtol=1e-4, atol=1e-5)
    image = pipe("the digit 7", num_inference_steps=2, output_type="np", **options).frames
    assert image.shape[-3:-1] == (64, 64)
    assert teacher.shape == (1, 1, 8, 8)


def test_a_sample_does_not_depend_on_the_others_in_its_batch(tiny_run: Path) -> None:
    job = Job(
        Teacher.read(tiny_run), ("the digit 7", "a handwritten seven"), (4, 9), 0, 4,
        str(tiny_run / "runs/select/transformer"), Sampler.of("renoise", [[1.5708, 1.3, 1.0, 0.6]]),
    )  # fmt: skip
    both = sample(job)
    from dataclasses import replace

    alone = sample(replace(job, prompts=job.prompts[1:], ids=job.ids[1:]))
    # a batch of another size may take another matrix kernel: equal to float32 rounding, not to the bit
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_published_samples_are_a_function_of_the_seed(tiny_run: Path) -> None:
    folder = tiny_run / "runs/publish/pipeline"
    first = sample_pipeline(folder, ["the digit 3"], 2, 0)
    assert first.shape == (1, 1, 1, 8, 8)
    assert torch.equal(first, sample_pipeline(folder, ["the digit 3"], 2, 0))
    assert not torch.equal(first, sample_pipeline(folder, ["the digit 3"], 2, 1))
