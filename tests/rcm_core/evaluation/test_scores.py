"""A row of results ranks generators correctly: real images before averages of them."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, Estimate
from rcm_core.evaluation.judges.base import unit_range
from rcm_core.evaluation.judges.build import judge_for
from rcm_core.evaluation.scores import score, score_one
from rcm_core.registry import find

BOOTSTRAP = Bootstrap(50, 0)
KEYS = {"frechet", "frechet_teacher", "accuracy", "precision", "recall", "diversity", "pairwise"}


def real() -> tuple[Tensor, Tensor, Tensor]:
    """Return samples [N, ...], labels [N] and groups [10, 10, ...] of the train scans."""
    pixels, labels = find("benchmarks", "digits").images("train")
    pixels = unit_range(pixels)
    groups = torch.stack([pixels[labels == digit][:10] for digit in range(10)])
    return pixels[:600], labels[:600], groups


def row(
    samples: Tensor, labels: Tensor, groups: Tensor, bootstrap: Bootstrap = BOOTSTRAP
) -> dict[str, Estimate]:
    judge = judge_for("digits")
    prompts = [f"the digit {digit}" for digit in labels]
    teacher = judge.features(real()[0])
    return score(samples, prompts, judge, judge.real_features("test"), teacher, groups, bootstrap)


def test_real_images_score_well_and_their_averages_do_not() -> None:
    samples, labels, groups = real()
    average = torch.stack([samples[labels == digit].mean(0) for digit in range(10)])
    good = row(samples, labels, groups)
    flat = row(average[labels], labels, average[:, None].expand_as(groups))
    assert set(good) == set(flat) == KEYS
    assert good["accuracy"]["value"] >= 0.99
    assert good["precision"]["value"] >= 0.9
    assert good["recall"]["value"] >= 0.8
    assert good["frechet_teacher"]["value"] == pytest.approx(0, abs=1e-9)
    assert flat["accuracy"]["value"] == 1.0
    assert flat["frechet"]["low"] > good["frechet"]["high"]
    assert flat["recall"]["high"] < good["recall"]["low"]
    assert flat["diversity"]["value"] == pytest.approx(1)
    assert flat["pairwise"]["value"] == pytest.approx(0)
    assert good["diversity"]["low"] > 1.2
    for estimate in [*good.values(), *flat.values()]:
        assert estimate["low"] <= estimate["value"] <= estimate["high"]


def test_score_is_deterministic_and_score_one_is_a_part_of_it() -> None:
    samples, labels, groups = real()
    judge, whole = judge_for("digits"), row(samples, labels, groups)
    prompts = [f"the digit {digit}" for digit in labels]
    assert row(samples, labels, groups) == whole
    for metric in ("frechet", "accuracy", "recall"):
        references = {"real": judge.real_features("test")}
        assert score_one(metric, samples, prompts, judge, references, BOOTSTRAP) == whole[metric]


def test_a_thousand_samples_with_two_hundred_resamples_take_seconds() -> None:
    samples, labels, groups = real()
    many = torch.cat((samples, samples[:400]))
    judge_for("digits")
    start = time.process_time()
    row(many, torch.cat((labels, labels[:400])), groups, Bootstrap(200, 0))
    # about one second of processor time on an idle core; the bound leaves room for a slow one
    assert time.process_time() - start <= 6


def test_wrong_questions_are_refused() -> None:
    samples, labels, groups = real()
    judge = judge_for("digits")
    with pytest.raises(InputError, match="unknown metric"):
        score_one("fid", samples, [], judge, {}, BOOTSTRAP)
    with pytest.raises(InputError, match="'frechet' needs real, which this benchmark does not have"):
        score_one("frechet", samples, [], judge, {}, BOOTSTRAP)
    with pytest.raises(InputError, match="samples >= 2"):
        row(samples, labels, groups[:, :1])
