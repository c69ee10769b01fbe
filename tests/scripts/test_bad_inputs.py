"""Mutilated inputs through the real commands end in one sentence and exit status 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from scripts.bad_inputs.cases import cases
from scripts.bad_inputs.project import Project

ROOT = Path(__file__).parents[2]
EVERY = 6
"""Of the inputs, one in so many is tried here."""


def test_a_part_of_the_inputs(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns(".rcm"))
    shutil.copytree(folder / "runs/publish/pipeline", folder / "student")
    project = Project(folder)
    found = [project.run(case) for number, case in enumerate(cases(folder)) if number % EVERY == 0]
    assert [case for case in found if not case["refused"]] == []


def test_all_that_were_tried_were_refused() -> None:
    found = json.loads((ROOT / "docs/results/bad_inputs.json").read_text())
    assert found["totals"]["inputs"] >= 400
    assert all(case["refused"] and case["status"] == 2 for case in found["inputs"])
