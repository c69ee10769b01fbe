"""The selected candidate, and the errors for missing and damaged candidates."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.errors import InputError
from rcm_core.evaluation.selection import Candidate
from rcm_core.stages import select
from rcm_core.storage.files import sha256_folder


def run(workspace: Path, settings: dict[str, Any]) -> dict[str, Any]:
    select.run(configure(workspace, settings), workspace, LocalExecutor(workspace))
    selection: dict[str, Any] = json.loads((workspace / "runs/select/selection.json").read_text())
    return selection


@pytest.mark.parametrize(("metric", "best"), [("accuracy", max), ("frechet_teacher", min)])
def test_every_candidate_is_scored_and_the_best_is_copied(workspace: Path, metric: str, best: Any) -> None:
    found = run(workspace, {"select.metric": metric, "select.steps": [1, 3]})
    names = {p.name for p in (workspace / "runs/train/candidates").iterdir()}
    assert {c["name"] for c in found["candidates"]} == names
    for candidate in found["candidates"]:
        assert set(candidate["scores"]) == {"1", "3"}
        for estimate in (candidate["score"], *candidate["scores"].values()):
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    scores = {c["name"]: c["score"]["value"] for c in found["candidates"]}
    assert scores[found["choice"]["name"]] == best(scores.values())
    assert found["reason"].startswith(found["choice"]["name"])
    chosen = workspace / "runs/train/candidates" / found["choice"]["name"] / "transformer"
    assert sha256_folder(workspace / "runs/select/transformer") == sha256_folder(chosen)


def test_the_sampler_decides_the_scores_and_is_recorded(workspace: Path) -> None:
    """Renoising and Euler steps start from the same noise, so with one step they are equal."""
    times = [[1.5708], [1.5708, 1.2, 0.5]]
    settings = {"select.steps": [1, 3], "evaluate.steps": [3], "sampler.times": times}
    found = {
        kind: run(workspace, settings | {"sampler.kind": kind, "method.simulation": kind})
        for kind in ("renoise", "euler")
    }
    for kind, selection in found.items():
        assert selection["sampler"] == {"kind": kind, "times": [[math.pi / 2], [math.pi / 2, 1.2, 0.5]]}
    one, three = (
        [[c["scores"][steps] for c in found[kind]["candidates"]] for kind in ("renoise", "euler")]
        for steps in ("1", "3")
    )
    assert one[0] == one[1]
    assert all(a["value"] != b["value"] for a, b in zip(*three))
    record = json.loads((workspace / "runs/select/record.json").read_text())
    assert record["parameters"]["sampler"] == {"kind": "euler", "times": times}


def test_no_candidates_is_said(workspace: Path) -> None:
    root = workspace / "runs/train/candidates"
    shutil.rmtree(root)
    with pytest.raises(InputError, match=r"runs/train/candidates does not exist; make it with `dvc repro`"):
        run(workspace, {})
    root.mkdir()
    with pytest.raises(InputError, match=rf"{root} holds no candidate; run `dvc repro train`"):
        run(workspace, {})


@pytest.mark.parametrize("name", ["best", "step_x-ema_0.1", "step_000012", "step_000012-ema_"])
def test_what_is_no_candidate_is_named(workspace: Path, name: str) -> None:
    (workspace / "runs/train/candidates" / name).mkdir()
    with pytest.raises(InputError, match=rf"candidates/{name} is not a candidate's name .*; remove it"):
        run(workspace, {})


def test_a_damaged_candidate_is_named_and_the_last_selection_stays(workspace: Path) -> None:
    before = sha256_folder(workspace / "runs/select")
    name = "step_000006-ema_0.1"
    path = workspace / f"runs/train/candidates/{name}/transformer/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"{name}.* is not a safetensors file"):
        run(workspace, {})
    assert sha256_folder(workspace / "runs/select") == before


def test_a_candidate_s_name_is_its_step_and_ema() -> None:
    assert select.parse("step_000300-ema_0.05") == Candidate("step_000300-ema_0.05", 300, 0.05)
