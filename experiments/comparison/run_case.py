"""One run in its own process, so that its memory can be measured.

``python -m experiments.comparison.run_case CASE.json``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from experiments.comparison.executor import MeasuringExecutor
from experiments.comparison.grid import save_grid
from experiments.comparison.measurements import PLACE, machine, summary
from experiments.comparison.plan import updates_in
from experiments.comparison.workspaces import FORMAT, OWN, code_of, digest, ensure, run_key
from infra.interrupt import unwind_on_signals
from rcm_core.config.load import load_params
from rcm_core.config.sections import Params
from rcm_core.errors import BAD_INPUT, InputError
from rcm_core.storage.files import json_text, write_json
from rcm_core.storage.run_folder import RunFolder
from rcm_core.training.distill import build_method


class Case(NamedTuple):
    """A run with its workspace and the path of its result."""

    teacher: str
    name: str
    preset: str
    words: str
    budget: str
    seed: int
    workspace: str
    cache: str
    result: str


def execute(case: Case) -> None:
    """Train, select and evaluate as far as not done yet; write the result and, for seed 0, its pictures."""
    workspace = Path(case.workspace)
    params = load_params(workspace / "params.yaml")
    do_stages(params, workspace, Path(case.cache))
    result = Path(case.result)
    if case.seed == 0:
        save_grid(RunFolder.of(workspace).samples, ("student",), result.with_suffix(".png"))
    _write_reference(workspace, result.parents[1])
    write_json(result, outcome(case, params, workspace))


def do_stages(params: Params, workspace: Path, cache: Path, further: tuple[str, ...] = ()) -> None:
    """Run the unfinished stages of a run and of ``further``; ``cache`` keeps the teacher's samples."""
    facts = RunFolder.of(workspace).teacher()
    executor = MeasuringExecutor(workspace, cache / code_of("evaluate", params)[:20], facts["hash"])
    for stage in (*OWN, *further):
        ensure(stage, params, workspace, executor)


def outcome(case: Case, params: Params, workspace: Path) -> dict[str, Any]:
    """Return the result to commit; it contains no path of this machine."""
    section, method = params.train, build_method(params.method, params.train.tangent)
    run = RunFolder.of(workspace)
    metrics, selection = run.metrics(), run.selection()
    chosen = next(c for c in selection["candidates"] if c["name"] == selection["choice"]["name"])
    found = json.loads((workspace / PLACE).read_text())["sessions"]
    return {
        "format": FORMAT,
        "key": run_key(params, workspace),
        "params": digest(params.model_dump(mode="json", exclude={"report", "publish"})),
        **{k: getattr(case, k) for k in ("teacher", "name", "preset", "words", "budget", "seed")},
        "teacher_hash": run.teacher()["hash"],
        "protocol": metrics["protocol"]["hash"],
        "method": params.method,
        "iterations": section.iterations,
        "student_updates": updates_in(method, section.iterations),
        "points_per_update": section.batch * int(params.method.get("pairs", 1)),
        "training": summary(found, section.iterations),
        "choice": {"name": chosen["name"], "metric": selection["metric"], "score": chosen["score"]},
        "rows": {k: row for k, row in metrics.items() if k.startswith("student")},
        "machine": machine(),
    }


def _write_reference(workspace: Path, folder: Path) -> None:
    """Write the teacher's own metrics and pictures once; they are the same in every run."""
    metrics = RunFolder.of(workspace).metrics()
    facts = RunFolder.of(workspace).teacher()
    place = folder / "teacher.json"
    known = json.loads(place.read_text()) if place.is_file() else {}
    reference = {
        "hash": facts["hash"],
        "steps": facts["steps"],
        "protocol": metrics["protocol"],
        "rows": {k: _drop_times(row) for k, row in metrics.items() if k.startswith("teacher")},
    }
    if json_text(known) != json_text(reference):
        write_json(place, reference)
        save_grid(RunFolder.of(workspace).samples, ("teacher",), folder / "teacher.png")


def _drop_times(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "seconds_per_sample"}


def main() -> int:
    """Execute the case. Exit status 0, or 2 with one sentence if it cannot be trained."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    unwind_on_signals()
    try:
        execute(Case(**json.loads(Path(sys.argv[1]).read_text())))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
