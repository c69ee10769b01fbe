"""The search of times: one after another, on the same noise, never worse by its own metric than the current ones."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.time_search import FIRST, candidates, judge_round, tune
from rcm_core.storage.files import sha256_folder


def about(value: float, width: float = 0.1) -> Estimate:
    return {"value": value, "low": value - width, "high": value + width, "n": 20}


def test_the_first_time_is_searched_near_noise() -> None:
    assert candidates(()) == [(angle,) for angle in FIRST]
    assert FIRST[0] == math.pi / 2
    assert list(FIRST) == sorted(set(FIRST), reverse=True)
    assert FIRST[-1] >= 1.4
    assert max(math.tan(angle) for angle in FIRST[1:]) == pytest.approx(
        1600, rel=0.1
    )  # four digits of the angle


def test_there_is_always_room_for_the_next_time() -> None:
    """This holds even if the lowest is chosen eight times."""
    frozen: tuple[float, ...] = ()
    for count in range(1, 9):
        found = candidates(frozen)
        for angles in found:
            assert angles[:-1] == frozen
            assert all(0 < b < a for a, b in pairwise(angles))
        assert len(set(found)) == len(found) >= 10
        frozen = found[-1]
        assert len(frozen) == count


def test_the_best_is_kept_and_what_is_there_is_advised_if_it_is_better() -> None:
    low, high, now = (1.5, 0.2), (1.5, 1.0), (1.4, 0.7)
    tried = [low, high]
    better = judge_round("frechet", {low: about(3.0), high: about(3.05), now: about(3.5)}, tried, now)
    assert (better.steps, better.found, better.advised, better.near) == (2, low, low, (high,))
    worse = judge_round("frechet", {low: about(3.0), high: about(3.05), now: about(2.0)}, tried, now)
    assert (worse.found, worse.advised, worse.near) == (low, now, ())
    up = judge_round("accuracy", {low: about(0.5), high: about(0.9)}, tried, None)
    assert (up.found, up.advised, up.near) == (high, high, ())
    equal = judge_round("accuracy", {low: about(0.5), high: about(0.5), now: about(0.5)}, tried, now)
    assert (equal.found, equal.advised, equal.near) == (low, now, (low, high))


def test_times_are_frozen_one_after_the_other(workspace: Path) -> None:
    params = configure(workspace, {})
    before = sha256_folder(workspace / "runs")
    found = tune(params, workspace, LocalExecutor(workspace), 2, None)
    assert sha256_folder(workspace / "runs") == before
    first, second = found.rounds
    assert set(first.scores) == set(candidates(()))
    assert set(second.scores) == {*candidates(first.found), (math.pi / 2, 1.3)}
    for outcome in found.rounds:
        best = min(score["value"] for score in outcome.scores.values())
        assert outcome.scores[outcome.advised]["value"] == best
        assert found.sampler.angles(outcome.steps) == outcome.advised
    assert found.sampler.steps == (1, 2, 3, 4)
    assert found.sampler.angles(4) == (math.pi / 2, 1.3, 1.0, 0.6)  # not searched, so unchanged
    # the prompts, ids, seed and metric are those of select: it gave the same list the same score
    selection = json.loads((workspace / "runs/select/selection.json").read_text())
    scores = next(c["scores"] for c in selection["candidates"] if c["name"] == found.student)
    assert first.scores[(math.pi / 2,)] == scores["1"]
    assert second.scores[(math.pi / 2, 1.3)] == scores["2"]
    assert json.loads(json.dumps(found.record()))["sampler"]["times"][0] == list(first.advised)


def test_without_a_chosen_student_it_is_said_what_to_do(workspace: Path) -> None:
    params = configure(workspace, {})
    shutil.rmtree(workspace / "runs/select/transformer")
    with pytest.raises(InputError, match=r"runs/select/transformer does not exist; make it with `dvc repro`"):
        tune(params, workspace, LocalExecutor(workspace), 1, 20)
    (workspace / "runs/select/selection.json").unlink()
    with pytest.raises(InputError, match=r"selection\.json does not exist; make it with `dvc repro select`"):
        tune(params, workspace, LocalExecutor(workspace), 1, 20)
