"""dvc.yaml is correct: the stages, their inputs and their outputs."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from workspaces import PATIENCE

from infra.code_hashes import write_hashes
from infra.params import compose
from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.registry import available

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
CODE: dict[str, Any] = PIPELINE["stages"]["code"]
STAGES: dict[str, dict[str, Any]] = {k: v for k, v in PIPELINE["stages"].items() if k != "code"}
LINE = ("teacher", "prompts", "trajectories", "train", "select", "evaluate", "report", "publish")


def outs(stage: str) -> list[str]:
    return [*STAGES[stage]["outs"], *STAGES[stage].get("metrics", [])]


def filled(text: str, params: dict[str, Any]) -> str:
    """Replace ``${a.b}`` as DVC does from params.yaml."""

    def value(match: re.Match[str]) -> str:
        found: Any = params
        for name in match[1].split("."):
            found = found[name]
        return str(found)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def test_every_stage_depends_on_code_through_its_own_file_alone(tiny_run: Path) -> None:
    write_hashes(tiny_run)
    written = {path.relative_to(tiny_run).as_posix() for path in (tiny_run / "runs/code").iterdir()}
    shutil.rmtree(tiny_run / "runs/code")
    assert {name for out in CODE["outs"] for name in out} == written - {"runs/code/modules.json"}
    assert {str(options) for out in CODE["outs"] for options in out.values()} == {
        "{'cache': False, 'persist': True}"
    }
    for name, stage in STAGES.items():
        assert [d for d in stage["deps"] if d.startswith(("runs/code", "rcm_core", "kernels"))] == [
            f"runs/code/{name}.json"
        ]


def test_a_stage_is_a_file_a_section_an_entry_and_a_record() -> None:
    assert tuple(STAGES) == LINE
    assert sorted(LINE) == available("stages")
    assert set(LINE) <= set(Params.model_fields)
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m infra.launch {name}"
        assert name in stage["params"]
        assert f"runs/{name}/record.json" in outs(name)
        source = (ROOT / f"rcm_core/stages/{name}.py").read_text()
        assert f'STAGE = "{name}"' in source


@pytest.mark.parametrize("stage", LINE)
def test_outs_are_what_the_stage_leaves(stage: str, tiny_run: Path) -> None:
    known = outs(stage)
    for out in known:
        assert out.startswith(f"runs/{stage}/")  # a stage writes only its own folder
        assert (tiny_run / out).exists()
    left = [p.relative_to(tiny_run).as_posix() for p in (tiny_run / "runs" / stage).rglob("*") if p.is_file()]
    assert left
    assert [p for p in left if not any(p == out or p.startswith(f"{out}/") for out in known)] == []


def test_nothing_is_left_outside_the_stages(tiny_run: Path) -> None:
    assert sorted(p.name for p in (tiny_run / "runs").iterdir()) == sorted(LINE)


def test_timings_and_records_are_no_stage_s_input() -> None:
    """They differ from run to run; a stage that depended on one would never be skipped."""
    for name, stage in STAGES.items():
        timed = [d for d in stage["deps"] if d.endswith(("record.json", "metrics.json"))]
        assert timed == (["runs/evaluate/metrics.json"] if name == "report" else [])


@pytest.mark.parametrize("stage", LINE)
def test_what_the_stage_hashes_as_input_is_a_dependency(stage: str, tiny_run: Path) -> None:
    params = yaml.safe_load((tiny_run / "params.yaml").read_text())
    deps = {filled(d, params) for d in STAGES[stage]["deps"]}
    record = json.loads((tiny_run / "runs" / stage / "record.json").read_text())
    assert set(record["inputs"]) <= deps


@pytest.mark.parametrize("stage", LINE)
def test_a_stage_reads_only_the_sections_that_it_declares(stage: str) -> None:
    """``params.<section>`` in its file; the names of prompt files are dependencies, so they count already."""
    tree = ast.parse((ROOT / f"rcm_core/stages/{stage}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    } & set(Params.model_fields)
    declared = {name.split(".")[0] for name in STAGES[stage]["params"]}
    through_files = {"prompts"} if any("${prompts." in d for d in STAGES[stage]["deps"]) else set()
    assert read <= declared | through_files
    assert declared <= read


def test_plots_show_columns_that_there_are(tiny_run: Path) -> None:
    assert PIPELINE["plots"]
    for plot in PIPELINE["plots"]:
        ((_, axes),) = plot.items()
        for axis in axes.values():
            for file, columns in axis.items():
                header = pd.read_csv(tiny_run / file).columns
                asked = [columns] if isinstance(columns, str) else columns
                assert set(asked) <= set(header)


PUBLISHED = {
    "wan-1.3b": ("rcm-wan-1.3b", "meanflow-wan-1.3b"),
    "wan-14b": ("rcm-wan-14b",),
    "cosmos-2b": ("rcm-cosmos-2b", "rcm-cosmos-0.6b"),
    "cosmos-14b": ("rcm-cosmos-14b",),
    "sd3-medium": ("cdm-sd3-medium",),
    "longcat-image": ("cdm-longcat-image",),
    "sana-0.6b": ("tbcm-sana-0.6b",),
    "sana-1.6b": ("scm",),
}
"""Recipes of external teachers."""
TEACHERS = {p.stem for p in (ROOT / "conf/teacher").glob("*.yaml")}


@pytest.mark.parametrize(("teacher", "method"), [(t, m) for t, methods in PUBLISHED.items() for m in methods])
def test_published_recipes_compose_with_their_teachers(tmp_path: Path, teacher: str, method: str) -> None:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    chosen = [f"teacher={teacher}", f"method={method}"]
    with pytest.raises(
        InputError, match=r"judge\.network, teacher\.source must be given, as in `dvc exp run -S"
    ):
        compose(tmp_path, chosen)
    params = compose(tmp_path, [*chosen, "teacher.source=/models/it", "judge.network=/models/clip"])
    assert params.teacher.data == "open"
    assert params.train.parallel.precision == "bfloat16"


@pytest.mark.parametrize("teacher", sorted(TEACHERS - PUBLISHED.keys() - {"open"}))
@pytest.mark.parametrize("method", available("methods"))
def test_every_choice_composes_to_complete_parameters(tmp_path: Path, teacher: str, method: str) -> None:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    source = ["teacher.source=somewhere"] if teacher == "folder" else []
    params = compose(tmp_path, [f"teacher={teacher}", f"method={method}", *source])
    assert params.method["name"] == method
    for path in (params.prompts.train, params.prompts.validation, params.prompts.test):
        assert (ROOT / path).is_file()
    written = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for stage in STAGES.values():
        for dep in stage["deps"]:
            found = filled(dep, written)
            assert found.startswith("runs/") or (ROOT / found).exists()


def test_dvc_reads_it() -> None:
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ended.stderr == ""
    assert ended.stdout.split() == ["code", *LINE]
