"""The prompt lists of scenes-video share no composition; clips are a function of their index."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from rcm_core.benchmarks import scenes_video
from rcm_core.rng import generator
from rcm_core.scenes.motion import CATEGORIES, DIRECTIONS, Motion, parse_motion

FOLDER = Path(__file__).parents[3] / "data/prompts/scenes-video"


def motions(split: str) -> list[Motion]:
    return [parse_motion(prompt) for prompt in (FOLDER / f"{split}.txt").read_text().splitlines()]


def test_splits_share_no_composition_and_have_every_category() -> None:
    held = {split: {m.composition for m in motions(split)} for split in ("train", "validation", "test")}
    assert not held["train"] & held["validation"]
    assert not held["train"] & held["test"]
    assert not held["validation"] & held["test"]
    assert Counter(m.category for m in motions("test")) == dict(zip(CATEGORIES, (48, 50, 50, 52)))
    assert {way for m in motions("train") if m.category == "single" for way in m.directions} == set(
        DIRECTIONS
    )


def test_labels_are_categories_and_clips_say_what_they_show() -> None:
    clips, shown = scenes_video.compose_split("validation")
    assert clips.shape == (200, 3, 8, 32, 32)
    assert [CATEGORIES.index(m.category) for m in shown] == scenes_video.images("validation")[1].tolist()
    assert {way for m in shown for way in m.directions} == set(DIRECTIONS)
    assert CATEGORIES[scenes_video.label("a red two moving up")] == "colours"


def test_drawing_is_a_function_of_prompt_split_and_address() -> None:
    clip = scenes_video.draw("a six moving left", "train", generator(1))
    assert torch.equal(clip, scenes_video.draw("a six moving left", "train", generator(1)))
    assert not torch.equal(clip, scenes_video.draw("a six moving left", "test", generator(1)))
