"""Artifacts on a run's Prefect page: progress, the table of metrics, samples and the path of the report."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from infra.commands.summary import early_stop, metric_table
from rcm_core.evaluation.report.formatting import markdown_table
from rcm_core.storage.run_folder import RunFolder

PROMPTS_SHOWN = 6


def start_progress(key: str, what: str) -> UUID:
    """Create a progress bar at 0 % and return its id."""
    identity = create_progress_artifact(progress=0.0, key=key, description=what)
    assert isinstance(identity, UUID)
    return identity


def set_progress(identity: UUID, done: int, total: int, what: str) -> None:
    update_progress_artifact(artifact_id=identity, progress=100.0 * done / total, description=what)


def publish_results(folder: Path, report: Path) -> None:
    """Publish the metrics table, the samples and the report of a finished run in ``folder``."""
    run = RunFolder.of(folder)
    if run.metrics_file.is_file():
        table = markdown_table(*metric_table(run.shown_metrics()))
        create_markdown_artifact(table, key="metrics", description="Numbers with 95 % intervals")
    if stop := early_stop(folder):
        create_markdown_artifact(stop, key="training", description="Training stopped early")
    if run.samples.is_dir():
        table = sample_table(run)
        create_markdown_artifact(table, key="samples", description="Teacher and student from the same noise")
    create_link_artifact(report.as_uri(), link_text=str(report), key="report", description="The whole report")


def sample_table(folder: RunFolder) -> str:
    """Return a Markdown table of pictures: a row per prompt, a column per sampler, the same noise along a row."""
    from rcm_core.evaluation.report.finished_run import read_run
    from rcm_core.evaluation.report.samples import picture, spread

    run = read_run(folder)
    rows = []
    for prompt in spread(list(dict.fromkeys(run.prompts)), PROMPTS_SHOWN):
        index = run.prompts.index(prompt)
        pictures = [f"![{s.name}]({picture(run.samples[s.key][index])})" for s in run.samplers]
        rows.append([prompt, *pictures])
    return markdown_table(["", *(s.name for s in run.samplers)], rows)
