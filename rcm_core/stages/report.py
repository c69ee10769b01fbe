"""report: one self-contained page from the JSON and samples of the other stages; ``runs/report/report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcm_core.config.sections import Params
from rcm_core.protocols import Executor
from rcm_core.record import dump, hash_inputs, recorded
from rcm_core.storage.files import atomic
from rcm_core.storage.schemas import read_selection

if TYPE_CHECKING:
    import pandas as pd

STAGE = "report"
INPUTS = [
    "runs/teacher/teacher.json",
    "runs/train/curves.csv",
    "runs/train/health.json",
    "runs/select/selection.json",
    "runs/evaluate/metrics.json",
    "runs/evaluate/samples",
]


def run(params: Params, workspace: Path, executor: Executor) -> None:  # noqa: ARG001 - nothing to distribute
    """Renders the page and the series that `dvc plots` shows."""
    inputs = hash_inputs(workspace, INPUTS)
    from rcm_core.evaluation.report.page import render  # matplotlib is not needed to refuse bad input

    with recorded(STAGE, workspace, dump(report=params.report), inputs, None, "cpu"):
        page = render(workspace / "runs", params.report.title, params.report.prompts)
        with atomic(workspace / "runs" / STAGE / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8")
        selection = read_selection(workspace)
        with atomic(workspace / "runs" / STAGE / "quality.csv") as temporary:
            quality_of(selection).to_csv(temporary, index=False)


def quality_of(selection: dict[str, Any]) -> pd.DataFrame:
    """One row per candidate, for `dvc plots`: training step, EMA length, mean score and its interval."""
    import pandas as pd

    rows = [{"step": c["step"], "ema": c["ema"], **c["score"]} for c in selection["candidates"]]
    return pd.DataFrame(rows).rename(columns={"value": "score"}).sort_values(["ema", "step"])
