"""A run's lines turn into bars on a terminal and stay lines elsewhere."""

from __future__ import annotations

import pytest

from infra.prefect.display import Bars, display


def test_without_a_terminal_there_are_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with display(8) as shown:
        shown.line("step 5/10  loss [1]")
        shown.done(1)
    assert capsys.readouterr().out == "step 5/10  loss [1]\n"


def test_counts_in_lines_move_the_stage_s_bar() -> None:
    bars = Bars(8)
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
    bars.done(4)
    assert stages.completed == 4
