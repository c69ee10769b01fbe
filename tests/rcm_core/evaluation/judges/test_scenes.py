"""The judge of scenes accepts composed scenes and rejects every wrong prompt, category by category."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcm_core.benchmarks import scenes
from rcm_core.errors import InputError
from rcm_core.evaluation.judges.base import unit_range
from rcm_core.evaluation.judges.build import judge_for
from rcm_core.evaluation.judges.detector import Seen
from rcm_core.evaluation.judges.scenes import satisfies
from rcm_core.evaluation.metrics.frechet import frechet
from rcm_core.rng import generator
from rcm_core.scenes.compose import compose
from rcm_core.scenes.request import CATEGORIES, NAMES, Request, Thing, parse

MANY = 60


def at(digit: int, colour: str, x: float, y: float) -> Seen:
    return Seen(digit, NAMES.index(colour), x, y, 0.9)


SEVEN, TWO = at(7, "red", 8, 8), at(2, "blue", 24, 10)


@pytest.mark.parametrize(
    ("prompt", "seen", "right"),
    [
        ("a seven", [SEVEN], True),
        ("a seven", [], False),
        ("a seven", [SEVEN, SEVEN], False),
        ("a seven", [TWO], False),
        ("a red seven", [SEVEN], True),
        ("a blue seven", [SEVEN], False),
        ("a two and a seven", [SEVEN, TWO], True),
        ("a two and a six", [SEVEN, TWO], False),
        ("two sevens", [SEVEN, SEVEN], True),
        ("three sevens", [SEVEN, SEVEN], False),
        ("two sevens", [SEVEN, TWO], False),
        ("a seven left of a two", [TWO, SEVEN], True),
        ("a seven right of a two", [TWO, SEVEN], False),
        ("a seven above a two", [TWO, SEVEN], False),  # 2 pixels higher is not above
        ("a seven above a two", [SEVEN, at(2, "blue", 10, 24)], True),
        ("a seven left of a two", [SEVEN, at(2, "blue", 24, 26)], False),  # more below than right of it
        ("a seven left of a two", [SEVEN, at(2, "blue", 13, 8)], False),  # 5 pixels are too few
        ("a red seven and a blue two", [SEVEN, TWO], True),
        ("a blue seven and a red two", [SEVEN, TWO], False),
        ("a red seven left of a blue two", [SEVEN, TWO], True),
        ("a blue two left of a red seven", [SEVEN, TWO], False),
    ],
)
def test_what_is_seen_is_compared_with_what_is_asked_for(prompt: str, seen: list[Seen], right: bool) -> None:
    assert satisfies(parse(prompt), seen) is right


def spoilt(request: Request) -> Request:
    """Return a request of the same category that no image of ``request`` fulfils."""
    first, *rest = request.things
    match request.category:
        case "counting":
            many = len(request.things)
            return Request("counting", (first,) * (many - 1 if many > 2 else many + 1))
        case "colours":
            return Request("colours", (Thing(first.digit, (first.colour + 1) % len(NAMES)),))
        case "position":
            return Request("position", request.things[::-1], request.relation)
        case "attribution":
            (second,) = rest
            swapped = (Thing(first.digit, second.colour), Thing(second.digit, first.colour))
            return Request("attribution", swapped, request.relation)
    others = (d for d in range(10) if all(d != thing.digit for thing in request.things))
    return Request(request.category, (Thing(next(others)), *rest))


def test_composed_scenes_are_right_and_wrong_prompts_fail() -> None:
    judge = judge_for("scenes")
    shares = []
    for category in CATEGORIES:
        rngs = [generator("judged", category, i) for i in range(MANY)]
        requests = [scenes.random_request(category, rng) for rng in rngs]
        pixels = torch.stack([compose(r, "test", rng)[0] for r, rng in zip(requests, rngs)])
        right = judge.match_requests(unit_range(pixels), requests)
        wrong = judge.match_requests(unit_range(pixels), [spoilt(request) for request in requests])
        # of 60 one category may miss four
        assert right.mean() >= 0.93, category
        assert wrong.mean() <= 0.03, category
        shares.append(float(right.mean()))
    assert sum(shares) / len(shares) >= 0.97


def test_prompts_and_requests_are_judged_alike() -> None:
    judge = judge_for("scenes")
    prompts = ["a red seven left of a blue two", "three fives", "a nine"]
    pixels = unit_range(torch.stack([scenes.draw(p, "test", generator("alike", p)) for p in prompts]))
    assert (
        judge.correct(pixels, prompts).tolist()
        == judge.match_requests(pixels, [parse(p) for p in prompts]).tolist()
    )
    assert [judge.category(prompt) for prompt in prompts] == ["attribution", "counting", "single"]
    with pytest.raises(InputError, match="one prompt per sample"):
        judge.correct(pixels, prompts[:2])
    with pytest.raises(InputError, match="shape"):
        judge.correct(pixels[..., :16], prompts)


def test_features_tell_scenes_from_spoilt_ones() -> None:
    """The Frechet distance of other real scenes is far below that of grey, noisy or mixed ones, or of one category."""
    judge = judge_for("scenes")
    real = judge.real_features("test")
    assert real.shape == (600, 64)
    assert np.isfinite(real).all()
    pixels = unit_range(scenes.images("train")[0])
    noise = 0.1 * torch.randn(pixels.shape, generator=generator("spoil"))
    grey, noisy = pixels.mean(1, keepdim=True).expand_as(pixels), (pixels + noise).clamp(0, 1)
    mixed, single = (pixels + pixels.roll(1, 0)) / 2, pixels[::6]
    near = frechet(judge.features(pixels), real)
    # 0.19 when written, and 1.9 to 7.3 for the spoilt ones
    assert all(frechet(judge.features(far), real) > 5 * near for far in (grey, noisy, mixed, single))
