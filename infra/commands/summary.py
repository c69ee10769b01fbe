"""Summary that ``rcm distill`` prints at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from infra.commands.tables import print_table
from rcm_core.monitoring.early_stopping import of_state, sentence
from rcm_core.storage.run_folder import RunFolder


def show(root: Path, page: str) -> None:
    """Print the metrics, the path of the report, the address of the Prefect page and how to stop Prefect."""
    console = Console(highlight=False)
    run = RunFolder.of(root)
    if run.metrics_file.is_file():
        print_table(*metric_table(run.shown_metrics()))
    if stop := early_stop(root):
        console.print(stop, style="bold", soft_wrap=True)
    console.print(f"report:  {run.report}", soft_wrap=True)
    console.print(f"Prefect: {page} (stop it with `rcm stop` or `make stop`)", soft_wrap=True)


def early_stop(root: Path) -> str | None:
    """Return why training ended before its last iteration, as a sentence; None if it did not."""
    run = RunFolder.of(root)
    if not run.health_file.is_file():
        return None
    facts = run.health()
    verdict = of_state(facts["verdict"])
    return None if verdict is None else sentence(verdict, facts["iterations"])


def metric_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows: a row per sampler, a column per metric, ``value (low - high)``."""
    rows = {name: row for name, row in metrics.items() if name != "protocol"}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    heads = ["", *(column.replace("_", " ") for column in columns)]
    return heads, [[name, *(cell(row.get(column)) for column in columns)] for name, row in rows.items()]


def cell(number: dict[str, float] | None) -> str:
    """Format as ``1.50 (1.25 - 1.75)``; only the value if the interval is a point."""
    if number is None:
        return ""
    value, low, high = (f"{number[key]:.3g}" for key in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} - {high})"
