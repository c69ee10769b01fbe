"""On a terminal a run's log lines update bars; elsewhere they stay lines, with progress lines between them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from projects import REPOSITORY

from infra.prefect.display import Bars, Plain
from infra.prefect.pace import STAGES, Pace, expect
from rcm_core.errors import InputError

SECONDS = dict.fromkeys(STAGES, 60.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_lines_say_where_the_run_is_and_what_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    shown = Plain(Pace(SECONDS, clock), clock)
    shown.line("Stage 'prompts' didn't change, skipping")
    shown.line("Running stage 'train':")
    for clock.now, done in ((1, 50), (2, 60), (40, 100), (41, 101)):
        shown.line(f"step {done}/200  loss [1]")
    shown.count_done(1)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "Stage 'prompts' didn't change, skipping",
        "Running stage 'train':",
        "stage 4 of 8: train; about 5 min left",
        "step 50/200  loss [1]",
        "step 60/200  loss [1]",
        "step 100/200  loss [1]",
        "stage 4 of 8: train; about 5 min left",
        "step 101/200  loss [1]",
    ]


def test_the_time_left_follows_how_fast_it_goes() -> None:
    clock = Clock()
    pace = Pace(SECONDS, clock)
    assert pace.seconds_left() == 8 * 60
    pace.begin("teacher")
    pace.count(0, 100)
    clock.now = 60.0
    pace.count(50, 100)
    assert pace.seconds_left() == 60 + 7 * 60
    clock.now = 120.0
    pace.count(100, 100)
    pace.begin("prompts")  # the teacher took twice as long as expected
    assert pace.seconds_left() == 7 * 120
    pace.begin("train")  # resumed at 600
    pace.count(600, 1000)
    clock.now = 130.0
    pace.count(700, 1000)
    assert pace.seconds_left() == 30 + 4 * 120
    assert Pace({}).seconds_left() is None


def test_counts_in_lines_move_the_stage_s_bar() -> None:
    bars = Bars(Pace(SECONDS))
    stages, stage = bars.progress.tasks
    bars.line("Running stage 'train':")
    bars.line("step 50/200  loss 1.5  120 samples/s")
    assert (stage.description, stage.completed, stage.total, stage.visible) == ("train", 50, 200, True)
    bars.line("step 200/200  loss 1.2")
    assert not stage.visible
    bars.line("Running stage 'trajectories':")
    bars.line("trajectories: 3/10 shards")
    assert (stage.description, stage.completed, stage.total) == ("trajectories", 3, 10)
    bars.line("ratio 3/4 of something")
    assert stage.completed == 3
    bars.count_done(4)
    assert stages.completed == 4
    assert "left" in stages.fields["left"]


def test_what_a_run_takes_is_said_from_the_last_one_or_from_what_was_measured(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    place = tmp_path / "docs/results/mini.json"
    place.parent.mkdir(parents=True)
    measured = {"stage_seconds": dict.fromkeys(STAGES, 54.0)}
    place.write_text(json.dumps(measured))
    assert expect(tmp_path, [], None).sentence() == (
        "8 stages, about 8 min if all of them run (measured on two cores); finished ones are skipped"
    )
    doubled = expect(tmp_path, ["trajectories.samples=1408"], None)
    assert doubled.seconds["trajectories"] == pytest.approx(2 * 54 + 6)
    other = expect(tmp_path, ["teacher=wan-1.3b", "teacher.source=/wan", "judge.network=none"], None)
    assert (other.seconds, Pace(other.seconds).seconds_left()) == ({}, None)
    for stage in STAGES:
        folder = tmp_path / "runs" / stage
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(
            json.dumps({"seconds": 10.0, "parameters": {"train": {"iterations": 140, "batch": 8}}})
        )
    last = expect(tmp_path, ["train.iterations=420", "train.batch=8"], None)
    assert last.seconds["train"] == pytest.approx(36)
    assert "as long as the last run here" in last.sentence()
    (tmp_path / "runs/train/record.json").write_text("{")
    assert "measured" in expect(tmp_path, [], None).sentence()
    with pytest.raises(InputError, match="unknown method"):
        expect(tmp_path, ["method=nothing"], None)
