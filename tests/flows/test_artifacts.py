"""Artifacts on a run's Prefect page."""

from __future__ import annotations

import json
from pathlib import Path

from flows.artifacts import PROMPTS_SHOWN, sample_table
from infra.commands.summary import metric_table
from rcm_core.evaluation.report.formatting import markdown_table
from rcm_core.storage.run_folder import RunFolder


def test_every_sampler_and_metric_is_in_the_table(tiny_run: Path) -> None:
    metrics = json.loads((tiny_run / "runs/evaluate/metrics.json").read_text())
    head, _, *rows = markdown_table(*metric_table(metrics)).splitlines()
    assert "frechet teacher" in head
    assert len(rows) == len(metrics) - 1  # all but the protocol
    assert {row.count("|") for row in rows} == {head.count("|")}


def test_samples_stand_side_by_side(tiny_run: Path) -> None:
    _, _, *rows = sample_table(RunFolder.of(tiny_run)).splitlines()
    assert 0 < len(rows) <= PROMPTS_SHOWN
    assert all(row.count("data:image/") == rows[0].count("data:image/") >= 3 for row in rows)


def test_a_bar_in_a_prompt_stays_in_its_cell() -> None:
    assert markdown_table(["", "a"], [["x | y", "1"]]).splitlines()[2] == r"| x \| y | 1 |"
