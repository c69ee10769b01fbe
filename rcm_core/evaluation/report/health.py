"""The course of the training in words: early stop and its reason, masked samples, spikes."""

from __future__ import annotations

from typing import Any

from rcm_core.evaluation.report.finished_run import Run
from rcm_core.evaluation.report.formatting import escape, number
from rcm_core.monitoring.early_stopping import of_state, sentence


def warning(run: Run) -> str:
    """Return the warning at the top of the page after a collapse or drift, else an empty text."""
    verdict = of_state(run.health["verdict"])
    return _notice(run) if verdict is not None and verdict.useless else ""


def course(run: Run) -> str:
    """Return the text of the training panel: an early stop if any, then masked samples, spikes and probes."""
    parts = [_left_out(run.health), *_spikes(run.health), *_steps_down(run.health), *_last_probe(run.health)]
    return f'{_notice(run)}<p class="note">{escape(" ".join(parts))}</p>'


def _notice(run: Run) -> str:
    verdict = of_state(run.health["verdict"])
    if verdict is None:
        return ""
    return f'<p class="notice">{escape(sentence(verdict, run.health["iterations"]))}</p>'


def _left_out(health: dict[str, Any]) -> str:
    return f"Samples left out as not finite: {health['nonfinite']:,}."


def _spikes(health: dict[str, Any]) -> list[str]:
    return [
        f"The {name.replace('_', ' ')} spiked in {count:,} iteration{'s' if count > 1 else ''}."
        for name, count in health["spikes"].items()
        if count
    ]


def _steps_down(health: dict[str, Any]) -> list[str]:
    return [
        f"At iteration {change['step']:,} the tangent stepped down from {change['from']} to {change['to']}."
        for change in health["step_downs"]
    ]


def _last_probe(health: dict[str, Any]) -> list[str]:
    """Compare the newest probe with the first, that of the untrained student."""
    known = [r for r in health["readings"] if r["score"] is not None]
    if len(known) < 2:
        return []
    first, last = known[0], known[-1]
    return [
        "Energy distance of one-step samples to the teacher's, on held-out trajectories:"
        f" {number(first['score'])} before the first iteration, {number(last['score'])} at {last['step']:,}."
    ]
