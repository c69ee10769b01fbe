"""A metric is one file: a new file in the registry is measured, can select, and is shown everywhere."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from reports import PROMPTS, Page, about, made_up_run
from tiny import tiny_values
from workspaces import change

import rcm_core.evaluation.metrics as folder
from experiments.comparison.page.advice import advice
from experiments.comparison.page.results import Group, Results
from experiments.comparison.page.tables import quality_table
from rcm_core.config.load import load_params
from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap
from rcm_core.evaluation.judges.build import judge_for
from rcm_core.evaluation.metric import every_metric
from rcm_core.evaluation.report import figures, model_card
from rcm_core.evaluation.report.finished_run import read_run
from rcm_core.evaluation.report.page import render
from rcm_core.evaluation.scores import score, score_one
from rcm_core.evaluation.selection import Candidate, choose
from rcm_core.samplers.few_step import Sampler
from rcm_core.storage.run_folder import RunFolder

FILE = '''
"""ShardingPlan of the features."""

from rcm_core.evaluation.bootstrap import mean
from rcm_core.evaluation.metric import Metric


def spread(inputs, bootstrap):
    return mean(inputs["features"].std(1), bootstrap, "blur", bounds=(0.0, 9.0))


METRICS = (
    Metric(
        name="blur", title="Blur", note="of the features", higher_is_better=False, bounds=(0.0, 9.0),
        needs=frozenset({"features"}), estimate=spread, place=65,
        shown=frozenset({"results", "card", "comparison", "advice"}),
    ),
)
'''


@pytest.fixture
def _blur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the file ``blur.py`` into the registry folder."""
    (tmp_path / "blur.py").write_text(FILE)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    every_metric.cache_clear()
    yield
    sys.modules.pop("rcm_core.evaluation.metrics.blur", None)
    every_metric.cache_clear()


@pytest.mark.usefixtures("_blur")
def test_it_is_measured() -> None:
    judge, groups = judge_for("digits"), torch.rand(3, 10, 1, 1, 8, 8)
    samples, prompts = groups.flatten(0, 1), ["the digit 3"] * 30
    reference = judge.features(samples)
    row = score(samples, prompts, judge, reference, reference, groups, Bootstrap(9, 0))
    assert row["blur"]["value"] == pytest.approx(reference.std(1).mean())
    assert score_one("blur", samples, prompts, judge, {}, Bootstrap(9, 0)) == row["blur"]


@pytest.mark.usefixtures("_blur")
def test_it_selects_by_its_direction(tmp_path: Path) -> None:
    place = tmp_path / "params.yaml"
    place.write_text(yaml.safe_dump(change(tiny_values(), {"select.metric": "blur"})))
    assert load_params(place).select.metric == "blur"
    scores = {Candidate(str(step), step, 0.1): {"1": about(step, 0.1)} for step in (1, 2)}
    selection = choose(scores, "blur", (1,))
    assert selection["choice"]["name"] == "1"
    assert selection["reason"].startswith("1 has the lowest mean blur")
    assert "blur" in figures.candidates(selection)


def test_without_its_file_there_is_no_such_metric(tmp_path: Path) -> None:
    place = tmp_path / "params.yaml"
    place.write_text(yaml.safe_dump(change(tiny_values(), {"select.metric": "blur"})))
    with pytest.raises(
        InputError,
        match=r"select\.metric = 'blur': input should be 'frechet', 'frechet_teacher' or 'accuracy'$",
    ):
        load_params(place)


@pytest.mark.usefixtures("_blur")
def test_it_is_in_the_report_and_on_the_card(tmp_path: Path) -> None:
    runs = made_up_run(tmp_path / "runs", (1, 1, 8, 8), PROMPTS)
    metrics = json.loads((runs / "evaluate/metrics.json").read_text())
    for name, row in metrics.items():
        if name != "protocol":
            row["blur"] = about(2.625, 0.125)
    (runs / "evaluate/metrics.json").write_text(json.dumps(metrics))
    text = " ".join(" ".join(Page(render(RunFolder(runs), "title", 1)).text).split())
    assert "Blur ↓ of the features" in text
    assert text.count("2.62 2.50 – 2.75") == 5  # once for every sampler
    assert "Blur ↓" in figures.intervals(read_run(RunFolder(runs)))
    teacher = {"licence": "x", "source": "s", "steps": 5, "guidance": 2.0, "hash": "h", "data": "digits"}
    facts = {
        "teacher": teacher, "steps": [1], "method": {"name": "rcm"}, "version": "v", "family": "wan",
        "text_length": 8, "choice": {"name": "c"},
    }  # fmt: skip
    card = model_card.model_card(facts, Sampler("renoise", ((1.5,),)), metrics, "name", (1, 1, 8, 8))
    assert "| sampler | frechet | accuracy | precision | recall | diversity | blur |" in card
    assert "2.625 [2.500, 2.750]" in card


@pytest.mark.usefixtures("_blur")
def test_it_is_on_the_page_of_the_comparison() -> None:
    row = {name: about(2.0, 0.1) for name in ("frechet", "frechet_teacher", "accuracy", "diversity")}
    result = {"rows": {"student_1": row | {"blur": about(3.0, 0.1)}}, "seed": 0, "words": "", "iterations": 1,
              "training": {"seconds": 1.0, "memory_bytes": 1.0}, "machine": {"processor": ""}}  # fmt: skip
    better = copy.deepcopy(result)
    better["rows"]["student_1"]["blur"] = about(1.0, 0.1)  # type: ignore[index]
    reference = {"rows": {"teacher": row | {"blur": about(0.5, 0.1)}}, "steps": 50}
    group = Group("mini", "updates", {"rcm": [result], "scm": [better]}, reference, Path())
    head, _, teacher, *_ = quality_table(group, 1).splitlines()
    assert head.endswith("| diversity | blur |")
    assert teacher.endswith("| 0.50 [0.40, 0.60] |")
    assert "  - lowest blur `scm` (1.00 [0.90, 1.10]); it beats all others" in advice(Results([group]))
