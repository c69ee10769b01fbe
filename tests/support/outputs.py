"""Check that a run of a stage writes all outputs that dvc.yaml lists: DVC fails a stage that omits one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import yaml

from rcm_core.registry import find

STAGES = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]


def outputs_of(stage: str) -> list[str]:
    """Return the paths of the outputs and metrics of ``stage`` in dvc.yaml."""
    listed = [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]
    return [path for entry in listed for path in (entry if isinstance(entry, Mapping) else [entry])]


@contextmanager
def outputs_checked() -> Iterator[None]:
    """Check the outputs after every run of a stage in this process, inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in STAGES.keys() - {"code"}:
            stage = find("stages", name)
            patch.setattr(stage, "run", _checking(stage.run, outputs_of(name)))
        yield


def _checking(run: Callable[..., None], outputs: list[str]) -> Callable[..., None]:
    @wraps(run)
    def checked(params: Any, workspace: Path, executor: Any) -> None:
        run(params, workspace, executor)
        missing = [path for path in outputs if not (workspace / path).exists()]
        assert not missing, f"dvc.yaml lists {missing}, which the stage did not write"

    return checked
