"""Mutilated inputs through the real commands end in one sentence and exit status 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from scripts.bad_inputs.cases import cases
from scripts.bad_inputs.project import Project, is_right

ROOT = Path(__file__).parents[2]
EVERY = 8
"""Step through the list of inputs: every 8th is tested here."""


def test_a_part_of_the_inputs(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns(".rcm"))
    shutil.copytree(folder / "runs/publish/pipeline", folder / "student")
    project = Project(folder)
    every = list(cases(folder))  # made before any of them changes the project
    found = [project.run(case) for case in every[::EVERY]]
    assert [case for case in found if not is_right(case)] == []


def test_all_that_were_tried_were_refused_or_taken_for_a_reason() -> None:
    found = json.loads((ROOT / "docs/results/bad_inputs.json").read_text())
    assert found["totals"]["inputs"] >= 400
    assert all(case["refused"] and case["status"] == 2 for case in found["inputs"] if "accepted" not in case)
    assert all(case["taken"] and case["status"] == 0 for case in found["inputs"] if "accepted" in case)
