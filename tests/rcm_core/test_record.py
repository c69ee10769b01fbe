"""The record of a stage, and the key of its live state."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from workspaces import change

from rcm_core.config.base import check
from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.record import (
    clear_state,
    commit,
    dump,
    fingerprint,
    hash_inputs,
    live_state,
    version,
    write_record,
)


def key(values: dict[str, Any], inputs: dict[str, str] | None = None, stage: str = "train") -> str:
    params = check(Params, values, "params.yaml")
    return fingerprint(stage, params, dump(train=params.train, method=params.method), inputs or {})


def test_the_fingerprint_is_of_parameters_inputs_and_code(values: dict[str, Any]) -> None:
    first = key(values)
    assert key(values) == first
    assert key(change(dict(values), {"report.title": "another"})) == first  # training does not read it
    assert key(values, {"a": "1"}) != first
    assert key(values, {"a": "2"}) != key(values, {"a": "1"})
    assert key(values, stage="select") != first
    assert key(change(values, {"train.seed": 1})) != first
    # the code of selected modules counts too, with equal parameters
    assert key(change(values, {"train.seed": 0, "teacher.data": "moving_digits"}), stage="teacher") != key(
        change(values, {"teacher.data": "digits"}), stage="teacher"
    )


def test_live_state_is_reused_by_its_owner_alone(tmp_path: Path) -> None:
    folder = live_state(tmp_path, "train", "abc")
    (folder / "checkpoint").touch()
    assert live_state(tmp_path, "train", "abc") == folder
    assert (folder / "checkpoint").exists()
    assert live_state(tmp_path, "train", "abd") != folder
    folder.rename(tmp_path / "train-abe")  # somebody moved it
    with pytest.raises(
        InputError,
        match=r"train-abe was started with .*abc.*, but this run is train-abe and cannot resume it",
    ):
        live_state(tmp_path, "train", "abe")
    clear_state(tmp_path / "train-abe")
    assert not (tmp_path / "train-abe").exists()
    assert live_state(tmp_path, "train", "abe").is_dir()


def test_a_state_that_was_killed_at_birth_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "train-abc").mkdir()
    folder = live_state(tmp_path, "train", "abc")
    assert json.loads((folder / "fingerprint.json").read_text()) == {"stage": "train", "fingerprint": "abc"}


def test_a_record_is_written_when_the_stage_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "runs/train/record.json"
    with write_record("train", tmp_path, {"train": {"seed": 3}}, {"in": "ab"}, 3, "cpu") as extra:
        assert not path.exists()
        extra["note"] = "kept"
        extra["peak_memory_bytes"] = 2**50
    record = json.loads(path.read_text())
    assert (record["stage"], record["seed"], record["device"], record["note"]) == ("train", 3, "cpu", "kept")
    assert record["inputs"] == {"in": "ab"}
    assert record["peak_memory_bytes"] == 2**50  # the workers' value, if it is larger than ours
    assert record["seconds"] >= 0
    before = path.read_bytes()
    with pytest.raises(InputError), write_record("train", tmp_path, {}, {}, 3, "cpu"):
        raise InputError("bad")
    assert path.read_bytes() == before


def test_inputs_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("a")
    hashes = hash_inputs(tmp_path, ["file", "folder"])
    assert [len(h) for h in hashes.values()] == [64, 64]
    assert len(set(hashes.values())) == 2
    with pytest.raises(InputError, match="runs/nothing does not exist; make it with `dvc repro`"):
        hash_inputs(tmp_path, ["file", "runs/nothing"])


def test_the_commit_says_whether_the_code_is_it(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    (tmp_path / "code").write_text("1")
    for arguments in (["init", "-q"], ["add", "code"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    head = commit(tmp_path)
    assert head is not None
    assert len(head) == 40
    (tmp_path / "code").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"


def test_versions_are_of_what_is_installed() -> None:
    import torch

    assert version("torch") == torch.__version__
    assert version("no-such-package") is None
