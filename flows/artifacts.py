"""What a run shows on its Prefect page: progress, the table of numbers, samples, where the report is."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from infra.summary import METRICS, cell, early_stop
from rcm_core.schemas import ShownMetrics, read

SAMPLES = Path("runs/evaluate/samples")
PROMPTS_SHOWN = 6


def start_progress(key: str, what: str) -> UUID:
    """A progress bar at 0 %."""
    identity = create_progress_artifact(progress=0.0, key=key, description=what)
    assert isinstance(identity, UUID)
    return identity


def set_progress(identity: UUID, done: int, total: int, what: str) -> None:
    update_progress_artifact(artifact_id=identity, progress=100.0 * done / total, description=what)


def publish_results(folder: Path, report: Path) -> None:
    """Table, samples and report of a finished run in ``folder``."""
    if (folder / METRICS).is_file():
        table = metric_table(read(folder / METRICS, ShownMetrics, "evaluate"))
        create_markdown_artifact(table, key="metrics", description="Numbers with 95 % intervals")
    if stop := early_stop(folder):
        create_markdown_artifact(stop, key="training", description="Training stopped early")
    if (folder / SAMPLES).is_dir():
        table = sample_table(folder / "runs")
        create_markdown_artifact(table, key="samples", description="Teacher and student from the same noise")
    create_link_artifact(report.as_uri(), link_text=str(report), key="report", description="The whole report")


def sample_table(runs: Path) -> str:
    """Markdown: a row per prompt, a column per sampler, one picture each, the same noise along a row."""
    from rcm_core.evaluation.report.run_folder import read_run
    from rcm_core.evaluation.report.samples import picture, spread

    run = read_run(runs)
    lines = ["| | " + " | ".join(s.name for s in run.samplers) + " |", "|---" * (len(run.samplers) + 1) + "|"]
    for prompt in spread(list(dict.fromkeys(run.prompts)), PROMPTS_SHOWN):
        index = run.prompts.index(prompt)
        pictures = [f"![{s.name}]({picture(run.samples[s.key][index])})" for s in run.samplers]
        lines.append(f"| {prompt} | " + " | ".join(pictures) + " |")
    return "\n".join(lines)


def metric_table(metrics: dict[str, Any]) -> str:
    """Markdown: a row per sampler, a column per metric, each ``value (low - high)``."""
    rows = {name: row for name, row in metrics.items() if name != "protocol" and isinstance(row, dict)}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [
        "| | " + " | ".join(c.replace("_", " ") for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = [cell(row.get(c)) for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
