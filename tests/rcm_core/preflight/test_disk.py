"""The disk space in a plan is what a run writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import ROOT, tiny_values

from rcm_core.config.base import check
from rcm_core.config.sections import Params
from rcm_core.preflight.disk import disk_use
from rcm_core.preflight.teacher_spec import model_of


def size(paths: list[Path]) -> int:
    return sum(p.stat().st_size for p in paths)


def test_planned_bytes_are_those_of_a_run(tiny_run: Path) -> None:
    params = check(Params, tiny_values(), "params.yaml")
    found = disk_use(model_of(params.teacher, ROOT), params)
    planned = {w.what.split(":")[0] + w.what.split(" ")[-1]: w for w in found}
    candidates = list(tiny_run.glob("runs/train/candidates/*/transformer/*.safetensors"))
    assert planned["traincandidates"].number == len(candidates)
    # file headers are added, which are a large part of tiny networks
    assert planned["traincandidates"].total == pytest.approx(size(candidates), rel=0.1)
    teacher = list(tiny_run.glob("runs/teacher/pipeline/transformer/*.safetensors"))
    assert planned["teacherhere"].total == pytest.approx(size(teacher), rel=0.1)
    shards = list(tiny_run.glob("runs/trajectories/shards/*.safetensors"))
    assert planned["trajectoriessamples"].total == pytest.approx(size(shards), rel=0.2)
    assert planned["publishnetwork"].number == 0


def test_lora_keeps_matrices_and_is_merged_once() -> None:
    values = tiny_values()
    whole = disk_use(model_of(check(Params, values, "").teacher, ROOT), check(Params, values, ""))
    values["train"]["lora"] = {"rank": 2, "alpha": 2, "targets": None}
    values["train"]["keep_candidates"] = 1
    params = check(Params, values, "")
    small = disk_use(model_of(params.teacher, ROOT), params)
    assert small[2].number == whole[2].number // 2
    assert small[2].each < whole[2].each / 3
    assert small[3].each < whole[3].each / 3
    assert small[4].total == whole[2].each
