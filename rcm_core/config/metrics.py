"""Checks of ``select.metric``: it must exist, and the benchmark must have its inputs."""

from __future__ import annotations

from typing import Any

from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.registry import every


def selecting_metrics() -> dict[str, Any]:
    """Return the records (``evaluation.metric.Metric``) that ``select.metric`` may name, by name, in order."""
    records = [
        metric for module in every("evaluation.metrics") for metric in module.METRICS if metric.selects
    ]
    return {metric.name: metric for metric in sorted(records, key=lambda metric: metric.place)}


def refuse_metric(params: Params, where: str) -> None:
    """Raise InputError unless ``select.metric`` names a metric that can select candidates."""
    name, known = params.select.metric, list(selecting_metrics())
    if name not in known:
        *others, last = map(repr, known)
        raise InputError(f"{where}: select.metric = {name!r}: input should be {', '.join(others)} or {last}")


def refuse_real(params: Params, without: str) -> None:
    """Raise InputError, which begins with ``without``, if ``select.metric`` needs real images."""
    name, known = params.select.metric, selecting_metrics()
    if "real" in known[name].needs:
        others = [other for other, metric in known.items() if "real" not in metric.needs]
        raise InputError(f"{without} for select.metric = {name!r}; set it to {' or '.join(others)}")


def takes_features(params: Params) -> bool:
    """Return whether ``select.metric`` compares distributions of features, which takes many samples."""
    return "features" in selecting_metrics()[params.select.metric].needs
