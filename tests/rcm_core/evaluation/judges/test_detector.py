"""The shipped detector finds held-out digits with colours and places, and reports nothing on empty images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rcm_core.benchmarks import scenes
from rcm_core.errors import InputError
from rcm_core.evaluation.judges import detector
from rcm_core.evaluation.judges.detector import DIGEST, PLACE, detect, load_detector, run
from rcm_core.rng import generator
from rcm_core.scenes.compose import SIZE, compose
from rcm_core.scenes.request import CATEGORIES

ROOT = Path(__file__).parents[4]


def test_the_file_is_small_and_its_record_is_of_it() -> None:
    assert (ROOT / PLACE).stat().st_size < 500_000
    record = json.loads((ROOT / PLACE).with_suffix(".json").read_text())
    assert record["sha256"] == DIGEST
    assert (ROOT / record["made_by"]).is_file()


def test_centres_digits_and_colours_are_those_that_were_drawn() -> None:
    rngs = [generator("detector", "test", i) for i in range(120)]
    requests = [scenes.random_request(CATEGORIES[i % 6], rng) for i, rng in enumerate(rngs)]
    drawn = [compose(request, "test", rng) for request, rng in zip(requests, rngs)]
    frames = torch.stack([image[:, 0] for image, _ in drawn])
    found = detect(run(load_detector(), frames)[1])
    right, off = [], []
    for seen, (_, placed) in zip(found, drawn):
        for one in placed:
            near = min(seen, key=lambda s: abs(s.x - one.x) + abs(s.y - one.y))
            right.append((near.digit, near.colour) == (one.digit, one.colour))
            off.append(max(abs(near.x - one.x), abs(near.y - one.y)))
    assert sum(right) / len(right) >= 0.98  # single digits; another test requires 97 % of whole scenes
    assert max(off) < 2.5  # pixels; quadrants and relations are decided by 6 and more
    assert sum(map(len, found)) == len(right)


@pytest.mark.parametrize("level", [-1.0, -0.8])
def test_an_empty_canvas_holds_nothing(level: float) -> None:
    frames = level + 0.1 * torch.rand(8, 3, SIZE, SIZE, generator=generator("empty"))
    assert detect(run(load_detector(), frames)[1]) == [[]] * 8


def test_blur_and_noise_do_not_confuse_it() -> None:
    pixels, requests = scenes.compose_split("test")
    frames = pixels[:120, :, 0]
    blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    spoilt = torch.lerp(frames, blurred, 0.5) + 0.1 * torch.randn(frames.shape, generator=generator("spoil"))
    found = detect(run(load_detector(), spoilt.clamp(-1, 1))[1])
    counted = [len(seen) == len(request.things) for seen, request in zip(found, requests)]
    assert sum(counted) / len(counted) >= 0.97


def test_frames_are_judged_alone() -> None:
    """The rest of the batch does not matter, except that convolutions of another batch size may round differently."""
    frames = scenes.images("test")[0][:20, :, 0]
    whole, _ = run(load_detector(), frames)
    parts = torch.cat([run(load_detector(), frame[None])[0] for frame in frames])
    assert torch.allclose(whole, parts, atol=1e-4)


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load_detector.cache_clear()
    monkeypatch.setattr(detector, "DIGEST", "0" * 64)
    with pytest.raises(InputError, match="not the expected detector"):
        load_detector()
    monkeypatch.setattr(detector, "PLACE", "data/scenes/absent.safetensors")
    with pytest.raises(InputError, match="train_detector"):
        load_detector()
