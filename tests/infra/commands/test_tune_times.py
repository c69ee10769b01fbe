"""``rcm tune-times`` says what to set so that it can be set, and writes it down."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from infra.commands.tune_times import format_angles, sentence, tune_times
from infra.params import compose
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.time_search import judge_round
from rcm_core.samplers.few_step import Sampler

ROOT = Path(__file__).parents[3]
PURE = (math.pi / 2,)
OTHER = (1.5,)


def test_what_it_prints_is_what_dvc_takes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RCM_EXECUTOR", "local")
    monkeypatch.setenv("RCM_HOME", str(workspace / ".rcm"))
    monkeypatch.setenv("COLUMNS", "80")
    found = tune_times(workspace / "params.yaml", workspace, 1, 20)
    said = capsys.readouterr().out
    line = re.search(r"^    dvc exp run -S '(sampler\.times=[^' ]+)'$", said, re.MULTILINE)
    assert line is not None
    shutil.copytree(ROOT / "conf", workspace / "conf")
    taken = compose(workspace, [line[1]]).sampler
    assert Sampler.of(taken.kind, taken.times) == found.sampler
    left = json.loads((workspace / "runs/tune/times.json").read_text())
    assert left["sampler"] == {"kind": "renoise", "times": [list(angles) for angles in found.sampler.times]}
    assert [p.name for p in (workspace / "runs/tune").iterdir()] == ["times.json"]
    for angles in found.rounds[0].scores:
        assert re.search(rf"^1 +{re.escape(format_angles(angles).strip('[]'))} ", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("pure", "other", "words"),
    [
        (2.0, 3.0, "1 step: [1.5708], the current list; 0 of the 1 other lists are within its interval"),
        (3.0, 2.0, "1 step: [1.5]; 0 of the 1 other lists are within its interval"),
        (
            2.05,
            2.0,
            "1 step: [1.5]; 1 of the 1 other lists are within its interval, and the current list [1.5708] is one of"
            " them: no significant gain",
        ),
    ],
)
def test_a_gain_within_the_interval_is_not_called_one(pure: float, other: float, words: str) -> None:
    def about(value: float) -> Estimate:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 20}

    scores = {PURE: about(pure), OTHER: about(other)}
    assert sentence(judge_round("frechet", scores, [PURE, OTHER], PURE)) == words
