"""Verdicts, advice and intervals follow their rules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments.comparison.calibrate import Cost
from experiments.comparison.page.advice import advice, among_best, recommend
from experiments.comparison.page.claims import (
    CLAIMS,
    DISTANCE,
    Claim,
    Part,
    findings,
    gain,
    memory_verdict,
    verdict,
    verdict_words,
)
from experiments.comparison.page.page import goal_sentence
from experiments.comparison.page.results import Group, Results
from experiments.comparison.plan import PLANS
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.metric import shown_metrics

TRAINING = {"seconds": 1.0, "memory_bytes": 1.0}


def about(value: float, width: float = 0.1) -> Estimate:
    return {"value": value, "low": value - width, "high": value + width, "n": 100}


def group(**methods: Mapping[str, float]) -> Group:
    """Return a group with three seeds of each method, close to the given values."""
    runs = {
        name: [
            {
                "rows": {
                    f"student_{s}": {k: about(v + 0.01 * seed) for k, v in numbers.items()} for s in (1, 4)
                },
                "seed": seed,
                "words": "",
                "training": TRAINING,
                "machine": {"processor": "ours"},
            }
            for seed in range(3)
        ]
        for name, numbers in methods.items()
    }
    return Group("mini", "updates", runs, {"rows": {}, "steps": 50}, Path(), processor="ours")


def claim(*parts: Part) -> Claim:
    return Claim("name", "words", "source", parts)


def test_a_gain_is_positive_where_ours_is_better_whatever_the_metric() -> None:
    made = group(ours={"frechet": 2.0, "accuracy": 0.9}, theirs={"frechet": 5.0, "accuracy": 0.5})
    assert gain(made, "ours", "theirs", "frechet").value == pytest.approx(3.0)
    assert gain(made, "ours", "theirs", "accuracy").value == pytest.approx(0.4)
    assert gain(made, "theirs", "ours", "frechet").high < 0


@pytest.mark.parametrize(
    ("ours", "expected"), [(2.0, "shows"), (8.0, "does not show"), (4.99, "undecided"), (5.01, "undecided")]
)
def test_better_needs_the_whole_interval(ours: float, expected: str) -> None:
    made = group(ours={"frechet": ours}, theirs={"frechet": 5.0})
    assert verdict(findings(claim(Part("ours", "theirs", "frechet")), made)) == expected


@pytest.mark.parametrize(("ours", "expected"), [(5.2, "shows"), (5.5, "undecided"), (6.0, "does not show")])
def test_no_worse_allows_a_share_of_theirs(ours: float, expected: str) -> None:
    made = group(ours={"frechet": ours}, theirs={"frechet": 5.0})
    assert verdict(findings(claim(Part("ours", "theirs", "frechet", share=0.1)), made)) == expected


@pytest.mark.parametrize(("ours", "expected"), [(4.0, "shows"), (5.05, "shows"), (6.0, "does not show")])
def test_within_the_interval_a_tie_will_do(ours: float, expected: str) -> None:
    made = group(ours={"frechet": ours}, theirs={"frechet": 5.0})
    assert verdict(findings(claim(Part("ours", "theirs", "frechet", within=True)), made)) == expected


def test_a_part_may_ask_for_one_step_count() -> None:
    made = group(ours={"frechet": 2.0}, theirs={"frechet": 5.0})
    (run,) = made.runs["ours"][:1]
    worst = max(run["rows"])
    for each in made.runs["ours"]:
        each["rows"][worst] = {"frechet": {"value": 90.0, "low": 89.9, "high": 90.1}}
    steps = int(worst.removeprefix("student_"))
    first = min(s for s in made.steps if s != steps)
    asked = [Part("ours", "theirs", "frechet", steps=s) for s in (steps, first)]
    assert [f.verdict for f in findings(claim(*asked), made)] == ["does not show", "shows"]


def test_a_claim_shows_if_all_its_parts_that_were_run_do() -> None:
    made = group(ours={"frechet": 2.0, "recall": 0.5}, theirs={"frechet": 5.0, "recall": 9.0})
    good, bad = Part("ours", "theirs", "frechet"), Part("ours", "theirs", "recall")
    absent = Part("ours", "nobody", "frechet")
    assert verdict(findings(claim(good, absent), made)) == "shows"
    assert verdict(findings(claim(good, bad), made)) == "does not show"
    assert verdict(findings(claim(absent), made)) == "not run"


def test_the_distance_is_asked_of_both_references() -> None:
    made = group(
        ours={"frechet": 2.0, "frechet_teacher": 9.0, "recall": 0.9},
        theirs={"frechet": 5.0, "frechet_teacher": 5.0, "recall": 0.5},
    )
    found = findings(claim(Part("ours", "theirs", DISTANCE), Part("ours", "theirs", "recall")), made)
    assert [f.part.metric for f in found] == ["frechet_teacher", "frechet", "recall"]
    assert verdict(found, "frechet_teacher") == verdict(found) == "does not show"
    assert verdict(found, "frechet") == "shows"
    assert verdict_words(found) == (
        "does not show by the distance to the teacher's samples, shows by the distance to real images"
    )
    assert verdict_words(found[1:]) == "shows"


def test_a_verdict_on_one_seed_says_so() -> None:
    made = group(ours={"frechet": 2.0}, theirs={"frechet": 5.0})
    made.runs["theirs"][1:] = []
    assert verdict_words(findings(claim(Part("ours", "theirs", "frechet")), made)) == "shows (one seed)"


def test_claims_name_runs_that_are_planned() -> None:
    planned = {v.name for v in PLANS["mini"].variants}
    parts = [part for c in CLAIMS for part in c.parts]
    assert {name for part in parts for name in (part.ours, part.theirs)} <= planned


def test_memory_shows_by_memory_and_time() -> None:
    def measured(tensors: float, seconds: float) -> dict[str, Any]:
        return {
            "tbcm_of_scm_vae": {"16": {"tensors": tensors, "seconds": seconds}},
            "decides": "16",
            "allowed": 0.6,
        }

    assert memory_verdict(None) == "not run"
    assert memory_verdict(measured(0.5, 0.9)) == "shows"
    assert memory_verdict(measured(0.7, 0.9)) == memory_verdict(measured(0.5, 1.1)) == "does not show"


def test_advice_names_the_best_and_what_cannot_be_told_from_it() -> None:
    def numbers(distance: float) -> dict[str, float]:
        return {"frechet": 9.0 - distance, "frechet_teacher": distance, "accuracy": 0.9, "diversity": 1.5}

    made = group(good=numbers(2.0), near=numbers(2.01), bad=numbers(8.0))
    assert among_best(made, "frechet_teacher") == ["good", "near"]
    assert among_best(made, "frechet") == ["bad"]
    assert recommend(Results([made])) == ["good", "near"]
    text = advice(Results([made]))
    assert re.search(r"to the teacher's samples `good` .*; not told apart from it: `near`\n", text)
    assert re.search(r"to real images `bad` .*; it beats all others\n", text)
    assert "make compare" in advice(Results())
    # only methods that were run everywhere are recommended everywhere, and ablations never
    other = group(near=numbers(2.0), odd=numbers(1.0))
    for run in other.runs["odd"]:
        run["words"] = "ten times the weight"
    assert recommend(Results([made, other])) == ["near"]


def test_equal_time_has_no_quickest() -> None:
    numbers = {"frechet": 1.0, "frechet_teacher": 1.0, "accuracy": 0.9, "diversity": 1.5}
    made = group(slow=numbers, fast=numbers)
    for run in made.runs["fast"]:
        run["training"] = TRAINING | {"seconds": 0.5}
    assert "quickest to train `fast`" in advice(Results([made]))
    assert "quickest" not in advice(Results([dataclasses.replace(made, budget="time")]))
    # the calibration reverses the order
    costs = {"slow": Cost(0, 0.1, 0.1), "fast": Cost(0, 0.2, 0.2)}
    for runs in made.runs.values():
        for run in runs:
            run["iterations"] = 3
    assert "quickest to train `slow`" in advice(Results([dataclasses.replace(made, costs=costs)]))
    # seconds of another processor are not compared, and not shown
    for run in made.runs["fast"]:
        run["machine"] = {"processor": "another"}
    assert made.seconds("fast") is None
    assert "quickest to train `slow`" in advice(Results([made]))


def test_costs_have_student_s_interval_over_seeds() -> None:
    made = group(ours={"frechet": 2.0})
    for run, seconds in zip(made.runs["ours"], (9.0, 10.0, 11.0)):
        run["training"] = {"seconds": seconds}
    found = made.measure("ours", "seconds")
    # t of 2 degrees of freedom is 4.303, the standard error 1 / sqrt 3
    assert found.value == pytest.approx(10.0)
    assert found.high - found.value == pytest.approx(4.303 / 3**0.5, rel=1e-3)


@pytest.mark.parametrize(("teacher", "student", "said"), [
    (0.8, 0.77, ("**reached**", "**reached**")),
    (0.7, 0.69, ("**not reached**", "**reached**")),
    (0.8, 0.70, ("**reached**", "**not reached**")),
])  # fmt: skip
def test_what_is_promised_of_scenes_is_said(teacher: float, student: float, said: tuple[str, str]) -> None:
    methods = {"scm": {"accuracy": student}, "kd": {"accuracy": 0.1}}
    made = dataclasses.replace(
        group(
            **{
                n: dict.fromkeys((m.name for m in shown_metrics("comparison")), 1.0) | v
                for n, v in methods.items()
            }
        ),
        teacher="scenes",
        reference={"rows": {"teacher": {"accuracy": about(teacher)}}},
    )
    text = goal_sentence(made)
    assert "`scm`" in text
    first, second = text.split(". The best student")
    assert said[0] in first
    assert said[1] in second
    assert "the next, `kd`, is" in second
    assert not goal_sentence(group(scm={"accuracy": 1.0}))
