"""Every reader accepts a mutilated file or raises InputError, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcm_core.config.load import load_params
from rcm_core.data.trajectory_store import read_manifest, read_negative
from rcm_core.errors import InputError
from rcm_core.samplers.jobs import Teacher
from rcm_core.storage.checked_json import fit
from rcm_core.storage.formats import read_csv, read_object, read_tensors, read_text, read_yaml
from rcm_core.storage.run_folder import RunFolder
from rcm_core.storage.schemas import (
    CurveState,
    HealthFacts,
    Metrics,
    Progress,
    Prompts,
    Quality,
    Record,
    Selection,
    ShardFacts,
    ShownMetrics,
    StoreFacts,
    StudentFacts,
    TeacherFacts,
    TrainRecord,
    Usage,
)

SCHEMAS = (
    TeacherFacts, StoreFacts, ShardFacts, Selection, Quality, Metrics, ShownMetrics, HealthFacts, CurveState, Progress,
    Record, TrainRecord, StudentFacts, Prompts, Usage,
)  # fmt: skip
FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "teacher.json": ("runs/teacher/teacher.json", lambda root: Teacher.read(root)),
    "prompts.parquet": ("runs/prompts/prompts.parquet", lambda root: RunFolder.of(root).prompts("train")),
    "manifest.parquet": (
        "runs/trajectories/manifest.parquet", lambda root: read_manifest(root / "runs/trajectories/manifest.parquet"),
    ),
    "negative.safetensors": (
        "runs/trajectories/negative.safetensors",
        lambda root: read_negative(root / "runs/trajectories/negative.safetensors"),
    ),
    "curves.csv": ("runs/train/curves.csv", lambda root: read_csv(root / "runs/train/curves.csv", ("step",), "x")),
    "params.yaml": ("params.yaml", lambda root: load_params(root / "params.yaml")),
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
CHEAP = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
@CHEAP
@given(value=JSON)
def test_any_json(schema: type, value: Any) -> None:
    only_refused(lambda: fit(schema, json.dumps(value), "file", "make it again"))


@pytest.mark.parametrize("name", FILES)
@CHEAP
@given(data=st.data())
def test_changed_bytes(
    name: str, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place, reader = FILES[name]
    content = (tiny_run / place).read_bytes()
    root = tmp_path_factory.getbasetemp() / f"mutilated-{name}"
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    first = data.draw(st.integers(0, len(content)))
    last = data.draw(st.integers(first, min(len(content), first + 64)))
    path.write_bytes(content[:first] + data.draw(st.binary(max_size=32)) + content[last:])
    only_refused(lambda: reader(root))


@CHEAP
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(content)
    for reader in (read_text, read_object, read_yaml, read_tensors):
        only_refused(lambda reader=reader: reader(path, "make it again"))  # type: ignore[misc]


def only_refused(read: Callable[[], Any]) -> None:
    """Assert that ``read`` returns or raises InputError; any other exception fails the test."""
    with suppress(InputError):
        read()
