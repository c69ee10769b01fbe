"""Prompt files in, disjoint hashed splits out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tiny import prepare
from workspaces import configure, environment, launch

from infra.executors.local import LocalExecutor
from rcm_core.benchmarks import digits
from rcm_core.errors import InputError
from rcm_core.stages import prompts
from rcm_core.storage.files import read_json

TRAIN = "data/prompts/digits/train.txt"
TEST = "data/prompts/digits/test.txt"


@pytest.fixture
def bare(tmp_path: Path, values: dict[str, Any]) -> Path:
    """A workspace without any finished stage."""
    prepare(tmp_path, values)
    return tmp_path


def run(workspace: Path, settings: dict[str, Any]) -> None:
    prompts.run(configure(workspace, settings), workspace, LocalExecutor(workspace))


def test_every_prompt_is_in_the_table_with_its_split_and_label(bare: Path) -> None:
    run(bare, {})
    frame = pd.read_parquet(bare / "runs/prompts/prompts.parquet")
    facts = read_json(bare / "runs/prompts/prompts.json", "prompts")
    assert sorted(facts) == ["test", "train", "validation"]
    for split, known in facts.items():
        rows = frame[frame["split"] == split]
        assert len(rows) == known["count"] > 0
        lines = (bare / f"data/prompts/digits/{split}.txt").read_text().splitlines()
        assert list(rows["prompt"]) == lines
        assert set(rows["label"]) == set(range(10))  # every split requests every digit
    assert list(frame["label"]) == [digits.label(p) for p in frame["prompt"]]
    assert frame["prompt"].is_unique


def test_another_order_or_prompt_is_another_hash(bare: Path) -> None:
    run(bare, {})
    before = read_json(bare / "runs/prompts/prompts.json", "prompts")
    lines = (bare / TRAIN).read_text().splitlines()
    (bare / TRAIN).write_text("\n".join(lines[::-1]))
    run(bare, {})
    after = read_json(bare / "runs/prompts/prompts.json", "prompts")
    assert after["train"]["sha256"] != before["train"]["sha256"]
    assert after["test"] == before["test"]


@pytest.mark.parametrize("content", [None, "", "\n \n"])
@pytest.mark.parametrize("stage", ["prompts", "teacher"])
def test_a_missing_or_empty_file_is_one_sentence(bare: Path, content: str | None, stage: str) -> None:
    from rcm_core.stages import teacher

    if content is None:
        (bare / TRAIN).unlink()
    else:
        (bare / TRAIN).write_text(content)
    params = configure(bare, {})
    with pytest.raises(InputError, match=rf"prompt file {bare / TRAIN} (does not exist|is empty); write"):
        {"prompts": prompts, "teacher": teacher}[stage].run(params, bare, LocalExecutor(bare))
    assert not (bare / "runs").exists()


def test_a_prompt_that_names_nothing_of_the_benchmark_is_named(bare: Path) -> None:
    (bare / TEST).write_text("a picture of a cat\n")
    with pytest.raises(InputError, match="a picture of a cat"):
        run(bare, {})
    assert not (bare / "runs").exists()


def test_a_leftover_of_a_killed_run_goes(bare: Path) -> None:
    (bare / "runs/prompts/.prompts.parquet.k1ll3d").mkdir(parents=True)
    (bare / "runs/prompts/.prompts.json.k1ll3d").touch()
    run(bare, {})
    found = {p.name for p in (bare / "runs/prompts").iterdir()}
    assert found == {"prompts.parquet", "prompts.json", "record.json"}


def test_as_a_user_meets_it(bare: Path) -> None:
    """The stage ends with status 2 and one sentence on stderr, and writes nothing."""
    env = environment(bare, "local")
    shared = (bare / TRAIN).read_text().splitlines()[0]
    (bare / TEST).write_text((bare / TEST).read_text() + f"\n{shared.upper()}\n")
    ended = launch(bare, "prompts", env)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"error: prompt {shared.upper()!r} is in both train and test")
    assert ended.stderr.count("\n") == 1
    assert not (bare / "runs").exists()

    values = yaml.safe_load((bare / "params.yaml").read_text())
    values["method"]["name"] = "rmc"
    (bare / "params.yaml").write_text(yaml.safe_dump(values))
    ended = launch(bare, "prompts", env)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: unknown method 'rmc' (did you mean 'rcm'?)")
    assert ended.stderr.count("\n") == 1

    shutil.rmtree(bare / "data")
    (bare / "params.yaml").unlink()
    ended = launch(bare, "promts", env)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "unknown stage 'promts' (did you mean 'prompts'?)" in ended.stderr
