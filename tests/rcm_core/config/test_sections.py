"""Sections are checked when read: the error names the first wrong key, its value and the expected value."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from rcm_core.config.base import check
from rcm_core.config.mini_teacher import Gate
from rcm_core.config.roles import LearningRates, Limits, Updates
from rcm_core.config.sections import Params
from rcm_core.config.workers import samples_per_rank
from rcm_core.errors import InputError


def test_the_shipped_parameters_are_complete(values: dict[str, Any]) -> None:
    params = check(Params, values, "params.yaml")
    dumped = params.model_dump(mode="json", exclude_unset=True)
    assert dumped == values  # nothing is added, dropped or converted


def test_sections_are_frozen(values: dict[str, Any]) -> None:
    params = check(Params, values, "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.train.batch = 3


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("train.batch", "64", "train.batch = '64': input should be a valid integer"),
        ("train.batch", 64.5, "train.batch = 64.5: input should be a valid integer"),
        ("train.batch", True, "train.batch = True: input should be a valid integer"),
        ("train.batch", 0, "train.batch = 0: input should be greater than or equal to 1"),
        ("train.batch", None, "train.batch = None: input should be a valid integer"),
        ("train.lr.student", "1e-3", "train.lr.student = '1e-3'.*write it as 0.001"),
        ("train.lr.student", -0.1, "train.lr.student = -0.1: input should be greater than 0"),
        ("train.lr.student", float("inf"), "train.lr.student = inf: input should be a finite number"),
        ("train.lr.student", float("nan"), "train.lr.student = nan: input should be a finite number"),
        ("train.tangent", "exakt", "train.tangent = 'exakt': input should be 'exact', 'semi' or 'discrete'"),
        ("train.ema_lengths", [], "train.ema_lengths = .*at least 1 item"),
        ("train.ema_lengths", [0.3], "train.ema_lengths.0 = 0.3: input should be less than 0.28"),
        ("train.lr_warmup", -1, "train.lr_warmup.student = -1: input should be greater than or equal to 0"),
        ("train.lr_warmup", 2.5, "train.lr_warmup.student = 2.5: input should be a valid integer"),
        ("train.lr_warmup", {"studnet": 2}, "unknown key 'train.lr_warmup.studnet'.*student"),
        ("train.clip", {"fake": 0}, "train.clip.fake = 0: input should be greater than 0"),
        ("train.eps", 0, "train.eps = 0: input should be greater than 0"),
        ("train.betas", [0.9, 1.0], "train.betas.1 = 1.0: input should be less than 1"),
        ("train.betas", [0.9], "key 'train.betas.1' is missing"),
        ("train.health.probe_samples", 1, "train.health.probe_samples = 1: .*greater than or equal to 2"),
        ("train.health.collapse", 1.0, "train.health.collapse = 1.0: input should be greater than 1"),
        ("train.health.patience", 0, "train.health.patience = 0: input should be greater than or equal to 1"),
        ("train.health.drfit", 1.0, "unknown key 'train.health.drfit'.*drift"),
        ("select.steps", [], "select.steps = .*at least 1 item"),
        ("teacher.guidance", 0.5, "teacher.guidance = 0.5: input should be greater than or equal to 1"),
        ("teacher.shape", [1, 8, 8], "key 'teacher.shape.3' is missing"),
        (
            "teacher.solver",
            "heun",
            "teacher.solver = 'heun': input should be 'euler', 'unipc' or 'dpmsolver\\+\\+'",
        ),
        ("teacher.mini.head_dim", 9, "teacher.mini.head_dim = 9: input should be a multiple of 2"),
        ("evaluate.device", "gpu", "evaluate.device = 'gpu': input should be 'auto', 'cpu' or 'cuda'"),
        ("train", 3, "train = 3: input should be an object"),
        ("report.title", datetime.date(2024, 1, 1), "date is not JSON serializable.*quote a date"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], path: str, value: Any, said: str) -> None:
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[key] = value
    with pytest.raises(InputError, match=rf"^params\.yaml: .*{said}") as caught:
        check(Params, values, "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        ((), "trian", "train"),
        (("train",), "iteration", "iterations"),
        (("train", "lr"), "studnet", "student"),
        (("teacher", "mini"), "text_len", "text_length"),
        (("teacher",), "licens", "licence"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(
    values: dict[str, Any], section: tuple[str, ...], key: str, meant: str
) -> None:
    where = values
    for name in section:
        where = where[name]
    where[key] = where.pop(meant)  # misspelt: the right key is missing too, but this is the one to correct
    full = ".".join([*section, key])
    with pytest.raises(InputError, match=rf"unknown key '{full}' \(did you mean '{meant}'\?\); known here: "):
        check(Params, values, "params.yaml")


def test_a_missing_key_is_named(values: dict[str, Any]) -> None:
    del values["train"]["lr"]["student"]
    with pytest.raises(InputError, match=r"key 'train\.lr\.student' is missing; add it"):
        check(Params, values, "params.yaml")


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(InputError, match="expected keys and values, got list"):
        check(LearningRates, [1], "params.yaml")


def test_a_setting_of_the_roles_is_a_value_for_each() -> None:
    section = check(Updates, {"student": 20, "fake": 0}, "here")
    assert section.given == {"student": 20, "fake": 0, "heads": 0}
    assert section.model_dump(exclude_unset=True) == {"student": 20, "fake": 0}
    assert check(Limits, {"student": 10}, "here").given == {"student": 10.0}


@pytest.mark.parametrize("value", [7, None, 2.5])
def test_or_one_value_for_all(values: dict[str, Any], value: float | None) -> None:
    values["train"]["clip"] = value
    params = check(Params, values, "params.yaml")
    roles = () if value is None else ("student", "fake", "heads")
    assert params.train.clip.given == dict.fromkeys(roles, value)
    assert params.model_dump(mode="json", exclude_unset=True)["train"]["clip"] == value


def test_integers_are_numbers_and_lists_are_tuples() -> None:
    assert check(LearningRates, {"student": 1, "fake": 2}, "here") == LearningRates(student=1.0, fake=2.0)
    gate = check(Gate, {"judge_accuracy": 1, "teacher_accuracy": 0, "samples": 1}, "here")
    assert gate.judge_accuracy == 1.0


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_ranks_share_the_batch_or_it_is_refused(workers: int, accumulate: int) -> None:
    for batch in range(1, 25):
        if batch % (workers * accumulate) == 0:
            assert samples_per_rank(batch, workers, accumulate, "batch") * workers * accumulate == batch
        else:
            with pytest.raises(InputError, match=f"batch {batch} does not divide into {workers} workers"):
                samples_per_rank(batch, workers, accumulate, "batch")
