"""The stage command: one sentence and status 2 for bad input, no Ray for stages that need none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from object_store import CREDENTIALS
from projects import free_port
from tiny import tiny_values

from infra.launch import LazyExecutor, run_stage
from rcm_core.errors import InputError

ROOT = Path(__file__).parents[2]


def launch(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | more | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-m", "infra.launch", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    answer = launch(tmp_path, "train")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: params.yaml does not exist")
    assert answer.stderr.count("\n") == 1


def test_an_unknown_stage_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown stage 'trian' \(did you mean 'train'\?\)"):
        run_stage("trian", tmp_path / "params.yaml", tmp_path)


def test_nothing_is_started_for_no_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCM_EXECUTOR", "nothing of the kind")
    with LazyExecutor(tmp_path, None) as executor:
        assert list(executor.map(print, [], "nothing")) == []


def test_an_unknown_executor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCM_EXECUTOR", "slurm")
    with (
        LazyExecutor(tmp_path, None) as executor,
        pytest.raises(InputError, match="'slurm': expected ray, local or torchrun"),
    ):
        executor.map(print, [1], "one")


def test_a_storage_that_does_not_answer_is_one_sentence_and_status_75(tmp_path: Path) -> None:
    """Status 75 (EX_TEMPFAIL) means to the flow and any other scheduler that the command may succeed later."""
    values = tiny_values()
    values["teacher"] |= {"source": "s3://bucket/teacher", "endpoint": f"http://127.0.0.1:{free_port()}"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "data").symlink_to(ROOT / "data")
    answer = launch(tmp_path, "teacher", **CREDENTIALS)
    assert answer.returncode == 75, answer.stderr
    assert re.fullmatch(r"error: s3://bucket .*cannot be reached.*\n", answer.stderr)
    assert not list((tmp_path / "runs").rglob("*"))
