"""Curves: an interrupted and an uninterrupted run write the same file."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from rcm_core.training.curves import COLUMNS, Curves


def steps(curves: Curves, first: int, last: int) -> None:
    for step in range(first, last):
        curves.add({"loss": 1 / (step + 3), "nonfinite": 1.0} | ({"fake_loss": step / 7} if step % 3 else {}))
        if (step + 1) % 4 == 0:
            curves.close(step + 1)


def test_a_window_is_the_mean_of_the_steps_that_have_the_scalar() -> None:
    curves = Curves()
    steps(curves, 0, 4)
    (row,) = curves.rows
    assert row["step"] == 4
    assert row["loss"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 5 + 1 / 6) / 4)
    assert row["fake_loss"] == pytest.approx((1 / 7 + 2 / 7) / 2)
    assert row["nonfinite"] == 4  # counted, not averaged


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_kept_in_a_checkpoint_they_go_on_to_the_bit(tmp_path: Path, cut: int) -> None:
    whole, first = Curves(), Curves()
    steps(whole, 0, 12)
    steps(first, 0, cut)
    resumed = Curves(**json.loads(json.dumps(first.state())))
    steps(resumed, cut, 12)
    assert resumed == whole
    whole.write(tmp_path / "a.csv")
    resumed.write(tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_the_file_has_every_column_and_empty_cells(tmp_path: Path) -> None:
    curves = Curves()
    curves.add({"loss": math.pi, "something_else": 1.0})
    curves.close(5)
    curves.write(tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert tuple(row) == COLUMNS
    assert row["step"] == "5"
    assert row["loss"] == "3.1415927"
    assert row["tangent_norm"] == row["fake_loss"] == ""


def test_values_of_a_moment_join_the_window_that_ends_there_or_stand_alone() -> None:
    curves = Curves()
    curves.mark(0, {"probe_score": 0.5})
    curves.add({"loss": 1.0, "spikes": 1.0})
    curves.add({"loss": 2.0, "spikes": 1.0})
    curves.mark(2, {"probe_score": 0.25})
    curves.close(2)
    curves.mark(3, {"probe_score": 0.2})
    assert curves.rows == [
        {"step": 0, "probe_score": 0.5},
        {"step": 2, "probe_score": 0.25, "loss": 1.5, "spikes": 2.0},
        {"step": 3, "probe_score": 0.2},
    ]


def test_the_line_says_where_it_is() -> None:
    scalars = {"loss": 0.5, "tangent_norm": 12.3456, "nonfinite": 0.0}
    said = Curves().line(50, 1500, scalars, 123.4)
    assert said == "step 50/1500  loss 0.5  tangent_norm 12.35  nonfinite 0  123 samples/s"
    assert Curves().line(50, 1500, {"probe_score": 0.25}) == "step 50/1500  probe_score 0.25"
