"""Scenes show the requested objects at the requested places, with scans of their split."""

from __future__ import annotations

import time

import pytest
import torch

from rcm_core.errors import InputError
from rcm_core.rng import generator
from rcm_core.scenes.compose import OBJECT, PALETTE, QUADRANT, SIZE, Placed, compose, inks
from rcm_core.scenes.request import NAMES, parse

PROMPTS = (
    "a seven", "a one and a nine", "four twos", "a green three", "an eight left of a zero",
    "a red seven above a blue two",
)  # fmt: skip


def drawn(prompt: str, many: int = 40) -> list[tuple[torch.Tensor, list[Placed]]]:
    return [compose(parse(prompt), "test", generator("test", prompt, i)) for i in range(many)]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_is_placed_is_what_is_asked_for(prompt: str) -> None:
    request = parse(prompt)
    for image, placed in drawn(prompt):
        assert image.shape == (3, 1, SIZE, SIZE)
        assert image.dtype == torch.float32
        assert -1 == image.min() < image.max() <= 1
        assert [one.digit for one in placed] == [thing.digit for thing in request.things]
        for thing, one in zip(request.things, placed):
            assert thing.colour in (-1, one.colour)
        corners = {(int(one.x) // QUADRANT, int(one.y) // QUADRANT) for one in placed}
        assert len(corners) == len(placed)  # each in its own quadrant
        if request.relation == "left":
            assert placed[0].x < QUADRANT < placed[1].x
            assert abs(placed[0].y - placed[1].y) <= QUADRANT - OBJECT
        if request.relation == "above":
            assert placed[0].y < QUADRANT < placed[1].y


@pytest.mark.parametrize("prompt", ["a five and a seven", "a red two with a blue six"])
def test_what_is_named_first_stands_first_in_reading_order(prompt: str) -> None:
    for i in range(20):
        first, second = compose(parse(prompt), "train", generator(i, "order"))[1]
        rows, columns = (
            [int(thing.y // 16) for thing in (first, second)],
            [thing.x for thing in (first, second)],
        )
        assert rows[0] < rows[1] or (rows[0] == rows[1] and columns[0] < columns[1])


def test_ink_lies_inside_the_squares_and_has_their_colour() -> None:
    for image, placed in drawn("a red seven and a blue two"):
        left = image[:, 0] + 1
        for one in placed:
            x, y = int(one.x - OBJECT / 2), int(one.y - OBJECT / 2)
            square = left[:, y : y + OBJECT, x : x + OBJECT]
            ink = square[PALETTE[one.colour].argmax()] / 2 / PALETTE[one.colour].max()
            # one multiplication and one addition of float32 around 1: a few units in the last place
            assert torch.allclose(square, 2 * PALETTE[one.colour][:, None, None] * ink, atol=1e-6)
            assert any(torch.allclose(ink, known, atol=1e-6) for known in inks("test")[one.digit])
            square.zero_()
        assert left.abs().max() == 0


def test_what_is_left_open_varies_and_an_address_gives_the_same() -> None:
    scenes = drawn("a seven", 60)
    assert {one.colour for _, (one,) in scenes} == set(range(len(NAMES)))
    assert len({(int(one.x) // QUADRANT, int(one.y) // QUADRANT) for _, (one,) in scenes}) == 4
    assert len({one.x for _, (one,) in scenes}) == 10  # two columns, jitter 0..4
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(scenes, drawn("a seven", 60)))


def test_splits_share_no_scan_and_others_are_refused() -> None:
    train, test = (
        {ink.numpy().tobytes() for row in inks(split) for ink in row} for split in ("train", "test")
    )
    assert not train & test
    with pytest.raises(InputError, match="did you mean 'train'"):
        compose(parse("a seven"), "trian", generator(0))


def test_an_image_takes_less_than_a_millisecond() -> None:
    compose(parse(PROMPTS[0]), "train", generator(0))
    start = time.process_time()
    for i in range(300):
        compose(parse(PROMPTS[i % len(PROMPTS)]), "train", generator(i))
    assert time.process_time() - start < 0.3
