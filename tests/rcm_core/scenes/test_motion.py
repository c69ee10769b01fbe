"""Moving scenes: prompts are parsed back, and clips match them frame by frame."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from rcm_core.errors import InputError
from rcm_core.rng import generator
from rcm_core.scenes.compose import OBJECT, SIZE
from rcm_core.scenes.motion import DIRECTIONS, FRAMES, SPEED, Motion, compose_motion, parse_motion
from rcm_core.scenes.request import NAMES, Thing

RED, BLUE = NAMES.index("red"), NAMES.index("blue")


@pytest.mark.parametrize(
    ("prompt", "motion"),
    [
        ("a clip of the digit seven going Left", Motion("single", (Thing(7),), ("left",))),
        ("a red eight moving up", Motion("colours", (Thing(8, RED),), ("up",))),
        ("a two moving up and a five sliding down", Motion("two", (Thing(2), Thing(5)), ("up", "down"))),
        (
            "a red two moving left and a blue five moving left",
            Motion("attribution", (Thing(2, RED), Thing(5, BLUE)), ("left", "left")),
        ),
    ],
)
def test_a_prompt_is_read(prompt: str, motion: Motion) -> None:
    assert parse_motion(prompt) == motion


def test_order_of_naming_is_no_composition_and_directions_are() -> None:
    first, turned, other = (
        parse_motion(prompt).composition
        for prompt in (
            "a two moving up and a five moving down",
            "a five moving down and a two moving up",
            "a two moving down and a five moving up",
        )
    )
    assert first == turned != other


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a seven", "1 digits and 0 directions"),
        ("moving left", "0 digits"),
        ("left goes a seven", "each followed by"),
        ("a two and a five moving left", "each followed by"),
        ("a two moving left and a five moving up", "would collide"),
        ("a red two moving left and a five moving left", "gives one of two"),
        ("a two moving left right", "1 digits and 2 directions"),
    ],
)
def test_what_cannot_be_read_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_motion(prompt)
    assert repr(prompt) in str(error.value)


@pytest.mark.parametrize("way", DIRECTIONS)
def test_objects_move_at_their_speed_inside_the_canvas_and_never_touch(way: str) -> None:
    turned = {"left": "right", "right": "left", "up": "down", "down": "up"}[way]
    motion = parse_motion(f"a red two moving {way} and a blue five moving {turned}")
    for i in range(30):
        clip, placed = compose_motion(motion, "test", generator("motion", way, i))
        assert clip.shape == (3, FRAMES, SIZE, SIZE)
        assert clip.min() == -1
        assert clip.max() <= 1  # would be more where two overlap
        for before, after in pairwise(placed):
            for k, ways in enumerate((way, turned)):
                right, down = DIRECTIONS[ways]
                assert (after[k].x - before[k].x, after[k].y - before[k].y) == (SPEED * right, SPEED * down)
        for frame in placed:
            first, second = frame
            assert max(abs(first.x - second.x), abs(first.y - second.y)) >= OBJECT
            assert all(OBJECT / 2 <= place <= SIZE - OBJECT / 2 for o in frame for place in (o.x, o.y))


def test_a_clip_is_one_scan_shifted() -> None:
    clip, placed = compose_motion(parse_motion("a white four moving right"), "test", generator(0))
    squares = [
        clip[:, t, int(o.y) - 6 : int(o.y) + 6, int(o.x) - 6 : int(o.x) + 6] for t, (o,) in enumerate(placed)
    ]
    assert all(torch.equal(square, squares[0]) for square in squares)
    assert (clip + 1).sum() == pytest.approx(sum(float((s + 1).sum()) for s in squares), rel=1e-5)
