"""Prompts of scenes are parsed back to their requests; others are refused in a sentence."""

from __future__ import annotations

import pytest

from rcm_core.errors import InputError
from rcm_core.scenes.request import CATEGORIES, NAMES, Request, Thing, parse

RED, BLUE = NAMES.index("red"), NAMES.index("blue")


@pytest.mark.parametrize(
    ("prompt", "request_"),
    [
        ("a photo of a Seven on black", Request("single", (Thing(7),))),
        ("the digit zero with an eight", Request("two", (Thing(0), Thing(8)))),
        ("a group of three fives", Request("counting", (Thing(5),) * 3)),
        ("two twos", Request("counting", (Thing(2),) * 2)),
        ("a red six", Request("colours", (Thing(6, RED),))),
        ("a one to the left of the digit two", Request("position", (Thing(1), Thing(2)), "left")),
        ("a one right of a two", Request("position", (Thing(2), Thing(1)), "left")),
        ("a one below a two", Request("position", (Thing(2), Thing(1)), "above")),
        ("a red seven and a blue two", Request("attribution", (Thing(7, RED), Thing(2, BLUE)))),
        (
            "a red seven left of a blue two",
            Request("attribution", (Thing(7, RED), Thing(2, BLUE)), "left"),
        ),
    ],
)
def test_a_prompt_is_read(prompt: str, request_: Request) -> None:
    assert parse(prompt) == request_
    assert request_.category in CATEGORIES


def test_wordings_of_one_composition_agree_and_others_do_not() -> None:
    def composition(prompt: str) -> tuple[str | int, ...]:
        return parse(prompt).composition

    assert composition("a two left of a six") == composition("a six to the right of a two")
    assert composition("a two left of a six") != composition("a six left of a two")
    assert composition("a two and a six") == composition("a six with a two")
    assert composition("a red two and a blue six") == composition("a blue six and a red two")
    assert composition("a red two and a blue six") != composition("a blue two and a red six")
    assert (
        len({composition(p) for p in ("a two", "a red two", "two twos", "three twos", "a two above a one")})
        == 5
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "names 0 digits"),
        ("a cat", "names 0 digits"),
        ("a one and a two and a three", "names 3 digits"),
        ("a one left of a two above", "2 sides"),
        ("a one and a two on the left", "at most one side between them"),
        ("a seven on the left", "names 1 digits and 1 sides"),
        ("fives", "does not count"),
        ("five fives", "does not count"),
        ("three red fives", "does not count"),
        ("two fives and a six", "does not count"),
        ("two fives and three sixes", "does not count"),
        ("a red six and a two", "gives one of two digits a colour"),
        ("a six in red", "stands before no digit"),
    ],
)
def test_what_cannot_be_read_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse(prompt)
    assert repr(prompt) in str(error.value)
