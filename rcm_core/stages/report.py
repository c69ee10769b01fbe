"""report: one self-contained page from the JSON and samples of the other stages; ``runs/report/report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcm_core.config.sections import Params
from rcm_core.execution import Executor
from rcm_core.record import dump, hash_inputs, write_record
from rcm_core.storage.files import atomic
from rcm_core.storage.run_folder import RELATIVE, RunFolder

if TYPE_CHECKING:
    import pandas as pd

STAGE = "report"
INPUTS = [
    RELATIVE.teacher_file,
    RELATIVE.curves,
    RELATIVE.health_file,
    RELATIVE.selection_file,
    RELATIVE.metrics_file,
    RELATIVE.samples,
]


def run(params: Params, workspace: Path, executor: Executor) -> None:  # noqa: ARG001 - nothing to distribute
    """Render the page, and the series that `dvc plots` shows."""
    inputs = hash_inputs(workspace, INPUTS)
    from rcm_core.evaluation.report.page import render  # imported late: the checks do not need matplotlib

    with write_record(STAGE, workspace, dump(report=params.report), inputs, None, "cpu"):
        run_folder = RunFolder.of(workspace)
        page = render(run_folder, params.report.title, params.report.prompts)
        with atomic(run_folder.report) as temporary:
            temporary.write_text(page, encoding="utf-8")
        with atomic(run_folder.report_series) as temporary:
            quality_of(run_folder.selection()).to_csv(temporary, index=False)


def quality_of(selection: dict[str, Any]) -> pd.DataFrame:
    """Return a row per candidate for `dvc plots`: training step, EMA length, mean score and its interval."""
    import pandas as pd

    rows = [{"step": c["step"], "ema": c["ema"], **c["score"]} for c in selection["candidates"]]
    return pd.DataFrame(rows).rename(columns={"value": "score"}).sort_values(["ema", "step"])
