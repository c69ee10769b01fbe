"""The cost of a training: time across interruptions, passes, memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from workspaces import configure

from experiments.comparison.calibrate import Cost, affordable, common_costs
from experiments.comparison.executor import MeasuringExecutor
from experiments.comparison.measurements import PLACE, sessions, summary
from experiments.comparison.studies.memory import Size, in_fresh_process, most_alive
from rcm_core.stages import train
from rcm_core.training.train_step import Stepper


def test_the_time_budget_buys_what_the_anchor_spends() -> None:
    anchor = Cost(100, 0.1, 0.4)
    assert anchor.seconds(300) == pytest.approx(90.0)
    assert anchor.iterations(anchor.seconds(300) + 0.1) == 300
    assert anchor.iterations(5.0) == 50
    entry = {"cost": Cost(0, 0.3, 0.3)._asdict(), "anchor": anchor._asdict()}
    assert affordable(entry, 300) == 300


def test_costs_of_another_machine_are_scaled_by_the_anchor() -> None:
    ours = {"cost": {"warmup": 100, "warm": 0.1, "steady": 0.4}, "anchor": {"steady": 0.4}}
    theirs = {"cost": {"warmup": 10, "warm": 0.05, "steady": 0.1}, "anchor": {"steady": 0.2}}
    assert common_costs({"rcm": ours, "other": theirs}, "rcm") == {
        "rcm": Cost(100, 0.1, 0.4),
        "other": Cost(10, 0.1, 0.2),
    }
    assert common_costs({"other": theirs}, "rcm") == {}


def test_an_interrupted_training_has_time_and_passes_of_both_parts(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = Stepper.train_step

    def dying(stepper: Stepper, step: int) -> dict[str, float]:
        if step == 9:
            raise KeyboardInterrupt
        return step_of(stepper, step)

    params = configure(workspace, {})
    executor = MeasuringExecutor(workspace, workspace / "cache", "teacher")
    shutil.rmtree(workspace / "runs/train")
    train.run(params, workspace, executor)
    whole = json.loads((workspace / PLACE).read_text())
    uninterrupted = summary(sessions(workspace / PLACE, whole["key"]), 12)
    assert not uninterrupted["interrupted"]
    shutil.rmtree(workspace / "runs/train")
    (workspace / PLACE).unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(Stepper, "train_step", dying)
        train.run(params, workspace, executor)
    train.run(params, workspace, executor)
    whole = json.loads((workspace / PLACE).read_text())
    found = sessions(workspace / PLACE, whole["key"])
    # died after nine steps, of which the checkpoint of the eighth is the last; there the second part began
    assert [s["iterations"] for s in found] == [8, 4]
    assert [s["whole"] for s in found] == [False, True]
    cost = summary(found, 12)
    assert cost["interrupted"]
    assert cost["seconds"] == pytest.approx(12 * cost["seconds_per_iteration"])
    # the ninth step, which was done twice, counts once, and so do the first ones, which are not like the others
    assert cost["forward_per_iteration"] == uninterrupted["forward_per_iteration"]
    assert cost["forward_per_iteration"]["student.tangent"] > 0
    assert sessions(workspace / PLACE, "another training") == []


def test_most_alive_counts_what_is_there_at_once() -> None:
    def work() -> None:
        first = torch.ones(1000)
        second = first * 2
        del first
        third = torch.ones(500)
        del second, third

    # the factor 2 is a tensor of a few bytes for a moment
    assert most_alive(work) == pytest.approx(2 * 4000, abs=64)


def test_encoding_in_the_step_takes_memory_that_tbcm_does_not_need() -> None:
    small = Size(points=16, routes=4, layers=1, base=16, timed=1)
    encoding, ours = (in_fresh_process(case, small) for case in ("scm_vae", "tbcm"))
    assert ours["tensors"] < 0.6 * encoding["tensors"]
    assert encoding["resident"] > 0
