"""The protocol of the reported metrics: changes, irrelevant changes, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.errors import InputError
from rcm_core.stages import evaluate, report
from rcm_core.storage.files import sha256, sha256_folder


def run(workspace: Path, settings: dict[str, Any]) -> dict[str, Any]:
    params = configure(workspace, {f"evaluate.{k}": v for k, v in settings.items()})
    evaluate.run(params, workspace, LocalExecutor(workspace))
    quality: dict[str, Any] = json.loads((workspace / "runs/evaluate/quality.json").read_text())
    return quality


def quality_of(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / "runs/evaluate/quality.json").read_text())
    return found


def test_timings_are_in_metrics_alone(tiny_run: Path) -> None:
    """Later stages depend on the hash of quality.json, so it contains nothing that differs on another machine."""
    quality, metrics = (
        json.loads((tiny_run / f"runs/evaluate/{n}.json").read_text()) for n in ("quality", "metrics")
    )
    assert {
        n: {k: v for k, v in row.items() if k != "seconds_per_sample"} for n, row in metrics.items()
    } == quality
    assert not any("seconds_per_sample" in row for row in quality.values())


def test_the_protocol_s_hash_is_of_what_is_measured(workspace: Path, tiny_run: Path) -> None:
    before = quality_of(tiny_run)
    after = run(workspace, {"samples": 40, "steps": [1]})
    assert set(after) == {"teacher", "teacher_1", "student_1", "protocol"}
    assert after["protocol"]["hash"] != before["protocol"]["hash"]
    # noise is addressed by sample: the first 40 are the same pictures
    for name in ("teacher", "teacher_1", "student_1"):
        few, many = (
            load_file(w / f"runs/evaluate/samples/{name}.safetensors")["pixels"]
            for w in (workspace, tiny_run)
        )
        # another batch size may take another matrix kernel: equal to float32 rounding
        torch.testing.assert_close(few, many[:40], rtol=1e-3, atol=1e-4)


def test_imported_samples_are_another_protocol_and_said(workspace: Path, tiny_run: Path) -> None:
    configure(workspace, {"trajectories.source": {"folder": "mine", "endpoint": None, "fps": None}})
    before, after = quality_of(tiny_run)["protocol"], run(workspace, {})["protocol"]
    assert after["reference"] == "the imported samples"
    assert "frechet_teacher against the imported samples;" in after["description"]
    assert "reference" not in before
    assert before["hash"] != after["hash"]


def test_the_student_is_sampled_and_not_the_teacher(workspace: Path, tiny_run: Path) -> None:
    path = workspace / "runs/select/transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["proj_out.bias"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    before, after = quality_of(tiny_run), run(workspace, {})
    for name in ("teacher", "teacher_1", "protocol"):
        assert after[name] == before[name]
    for name in ("student_1", "student_2", "student_4"):
        assert after[name]["frechet"] != before[name]["frechet"]


def test_the_student_s_sampler_is_the_one_that_select_recorded(workspace: Path, tiny_run: Path) -> None:
    other = {"sampler.kind": "euler", "method.simulation": "euler"}
    configure(workspace, {"sampler.times": [[1.4], [1.4, 0.3], [1.4, 0.3, 0.2, 0.1]], **other})
    assert run(workspace, {}) == quality_of(tiny_run)
    place = workspace / "runs/select/selection.json"
    selection = json.loads(place.read_text())
    selection["sampler"] = {"kind": "euler", "times": [[1.5, 1.0]]}  # no one-step list: nothing needs it
    place.write_text(json.dumps(selection))
    found = run(workspace, {"steps": [2]})
    assert found["student_2"]["frechet"] != quality_of(tiny_run)["student_2"]["frechet"]
    with pytest.raises(InputError, match=r"1 step asked for, but sampler\.times has lists for 2;"):
        run(workspace, {"steps": [2, 1]})
    del selection["sampler"]
    place.write_text(json.dumps(selection))
    with pytest.raises(
        InputError, match=r"selection\.json: sampler: field required; `dvc repro select` makes it again"
    ):
        run(workspace, {"steps": [2]})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"samples": 4, "steps": [1]},
            "evaluate.samples = 4, but a Frechet distance needs at least 20 samples",
        ),
        (
            {"diversity_samples": 1, "steps": [1]},
            "evaluate.diversity_samples = 1: input should be greater than or equal to 2",
        ),
    ],
)
def test_too_few_samples_for_a_number_are_refused(
    workspace: Path, settings: dict[str, Any], said: str
) -> None:
    before = sha256_folder(workspace / "runs/evaluate")
    with pytest.raises(InputError, match=said):
        run(workspace, settings)
    assert sha256_folder(workspace / "runs/evaluate") == before


def test_a_shard_that_is_corrupt_is_named_here_too(workspace: Path) -> None:
    shard = workspace / "runs/trajectories/shards/shard_00002.safetensors"
    shard.write_bytes(b"corrupt")
    with pytest.raises(InputError, match=rf"shard {shard} is corrupt: .*`dvc repro trajectories`"):
        run(workspace, {"steps": [1]})


def test_the_report_reads_what_is_there_and_names_what_is_not(workspace: Path, tiny_run: Path) -> None:
    params = configure(workspace, {})
    report.run(params, workspace, LocalExecutor(workspace))
    for name in ("report.html", "quality.csv"):
        assert sha256(workspace / "runs/report" / name) == sha256(tiny_run / "runs/report" / name)
    (workspace / "runs/train/curves.csv").unlink()
    with pytest.raises(InputError, match=r"runs/train/curves\.csv does not exist; make it with `dvc repro`"):
        report.run(params, workspace, LocalExecutor(workspace))
