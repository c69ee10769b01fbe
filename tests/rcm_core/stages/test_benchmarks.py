"""The eight stages on the benchmarks with categories, and their additional results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import ROOT, prepare, run_all

from infra.executors.local import LocalExecutor
from rcm_core.registry import find

MEASURES = ["subject_consistency", "motion_smoothness", "dynamic_degree", "motion_following"]


def small(values: dict[str, Any], benchmark: str) -> dict[str, Any]:
    """Return the tiny parameters with the prompts, shape and text of ``benchmark``."""
    conf = yaml.safe_load((ROOT / f"conf/teacher/{benchmark}.yaml").read_text())
    mini = {"patch": 8, "text_heads": 2, "text_order": 32.0, "text_length": 16, "steps": 2, "batch": 12}
    values["teacher"] |= {key: conf["teacher"][key] for key in ("data", "shape")} | {"steps": 2}
    values["teacher"]["mini"] |= mini
    values["prompts"] = conf["prompts"]
    values["trajectories"] |= {"samples": 24, "shard_size": 24}
    values["train"] |= {
        "iterations": 2,
        "candidate_every": 2,
        "checkpoint_every": 2,
        "log_every": 2,
        "ema_lengths": [0.1],
    }
    values["select"] |= {"samples": 24, "steps": [1]}
    values["evaluate"] |= {
        "samples": 24,
        "steps": [1],
        "diversity_prompts": 2,
        "diversity_samples": 2,
        "timing_samples": 1,
    }
    return values


@pytest.mark.parametrize(("benchmark", "measures"), [("scenes-train", []), ("scenes-video", MEASURES)])
def test_every_category_and_measure_is_reported(
    benchmark: str, measures: list[str], values: dict[str, Any], tmp_path: Path
) -> None:
    params = prepare(tmp_path, small(values, benchmark))
    run_all(tmp_path, params, LocalExecutor(tmp_path))
    quality = json.loads((tmp_path / "runs/evaluate/quality.json").read_text())
    categories = find("benchmarks", params.teacher.data).categories
    expected = [f"accuracy_{category}" for category in categories]
    for name in ("teacher", "teacher_1", "student_1"):
        row = quality[name]
        assert {key for key in row if key.startswith("accuracy_") or key in MEASURES} == {
            *expected, "accuracy_mean", *measures
        }  # fmt: skip
        mean = sum(row[key]["value"] for key in expected) / len(expected)
        assert row["accuracy_mean"]["value"] == pytest.approx(mean)
        assert sum(row[key]["n"] for key in expected) == row["accuracy_mean"]["n"] == 24
        for key in (*expected, "accuracy_mean", *measures):
            assert 0 <= row[key]["low"] <= row[key]["value"] <= row[key]["high"] <= 1
    assert "an independent detector" in quality["protocol"]["description"]
    assert f"the mean over {len(categories)} categories" in quality["protocol"]["description"]
    page = (tmp_path / "runs/report/report.html").read_text()
    assert "Accuracy by category" in page
    assert all(key.replace("_", " ") in page for key in measures)
