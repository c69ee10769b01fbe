"""The prompt lists of scenes: GenEval's counts, no composition in two splits, and images of every prompt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from rcm_core.benchmarks import scenes
from rcm_core.rng import generator
from rcm_core.scenes.request import CATEGORIES, NAMES, Request, parse

FOLDER = Path(__file__).parents[3] / "data/prompts/scenes"
GENEVAL = {"single": 80, "two": 99, "counting": 80, "colours": 94, "position": 100, "attribution": 100}


def requests(split: str) -> list[Request]:
    return [parse(prompt) for prompt in (FOLDER / f"{split}.txt").read_text().splitlines()]


def test_the_test_list_has_geneval_s_counts() -> None:
    found = Counter(request.category for request in requests("test"))
    assert found == GENEVAL
    assert sum(found.values()) == 553


def test_no_composition_stands_in_two_splits() -> None:
    held = {split: {r.composition for r in requests(split)} for split in ("train", "validation", "test")}
    assert not held["train"] & held["validation"]
    assert not held["train"] & held["test"]
    assert not held["validation"] & held["test"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_lists_are_unique_and_have_every_category_from_the_start(split: str) -> None:
    prompts = (FOLDER / f"{split}.txt").read_text().splitlines()
    assert len(set(prompts)) == len(prompts)
    assert {parse(prompt).category for prompt in prompts[:6]} == set(CATEGORIES)


def test_train_knows_every_part() -> None:
    train = requests("train")
    for category in ("two", "counting", "colours", "position", "attribution"):
        digits = {thing.digit for r in train if r.category == category for thing in r.things}
        assert digits == set(range(10))
    assert {len(r.things) for r in train if r.category == "counting"} == {2, 3, 4}
    assert {r.things[0].colour for r in train if r.category == "colours"} == set(range(len(NAMES)))
    assert {r.relation for r in train} == {"", "left", "above"}


def test_labels_are_categories_and_images_say_what_they_show() -> None:
    assert [CATEGORIES[scenes.label(p)] for p in ("a six", "a six and a two", "two sixes")] == list(
        CATEGORIES[:3]
    )
    pixels, shown = scenes.compose_split("validation")
    assert torch.equal(pixels, scenes.images("validation")[0])
    assert [CATEGORIES.index(r.category) for r in shown] == scenes.images("validation")[1].tolist()
    assert {r.relation for r in shown if r.category == "attribution"} == {"", "left", "above"}
    for request in shown:
        values = [(thing.digit, thing.colour) for thing in request.things]
        assert len(set(values)) == (1 if request.category == "counting" else len(values))


def test_drawing_is_a_function_of_prompt_split_and_address() -> None:
    image = scenes.draw("a red six", "train", generator(1))
    assert torch.equal(image, scenes.draw("a red six", "train", generator(1)))
    assert not torch.equal(image, scenes.draw("a red six", "test", generator(1)))
    assert not torch.equal(image, scenes.draw("a red six", "train", generator(2)))
