"""Cached prompt embeddings: the same embeddings, without a second encoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import BUILDERS, PROMPTS, build

from rcm_core.pipelines import prompt_cache
from rcm_core.pipelines.prompt_cache import encode_cached, texts_of
from rcm_core.registry import find
from rcm_core.samplers.jobs import KEPT, Teacher, codec_of, conditions


@pytest.mark.parametrize("family", BUILDERS)
def test_what_is_kept_is_what_was_encoded(family: str, tmp_path: Path) -> None:
    build(family, tmp_path / "pipeline")
    codec = find("models", family).load_codec(tmp_path / "pipeline")
    asked = []

    def encode(prompts: list[str]) -> dict[str, torch.Tensor]:
        asked.extend(prompts)
        return dict(codec.encode_text(prompts))

    prompts = [*PROMPTS, ""]
    first = encode_cached(tmp_path / "texts", prompts, encode)
    again = encode_cached(tmp_path / "texts", prompts[::-1], encode)
    assert asked == prompts
    for name, value in first.items():
        alone = torch.cat([codec.encode_text([prompt])[name] for prompt in prompts])
        assert torch.equal(value, alone)
        assert torch.equal(value, again[name].flip(0))


def test_only_large_text_encoders_have_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("cosmos", tmp_path / "pipeline")
    assert texts_of(tmp_path / "pipeline", tmp_path, "cosmos", "abc") is None
    monkeypatch.setattr(prompt_cache, "LARGE", 1000)
    found = {
        texts_of(tmp_path / "pipeline", tmp_path, family, digest)
        for family, digest in (("cosmos", "abc"), ("cosmos", "abd"), ("wan", "abc"))
    }
    assert len(found) == 3
    monkeypatch.setattr(prompt_cache, "version", lambda name: "another")
    assert texts_of(tmp_path / "pipeline", tmp_path, "cosmos", "abc") not in found


def test_who_finds_all_prompts_loads_no_text_encoder(tmp_path: Path) -> None:
    shape = build("cosmos", tmp_path / "pipeline")
    teacher = Teacher(
        str(tmp_path / "pipeline"), "cosmos", shape, 2.0, 2, 1.0, "euler", "", texts=str(tmp_path / "texts")
    )
    before = conditions(teacher, ("the digit 7", "three", "the digit 7"), torch.device("cpu"))
    KEPT.forget("codec")
    after = conditions(teacher, ("the digit 7", "three", "the digit 7"), torch.device("cpu"))
    assert torch.equal(before["text"], after["text"])
    assert "encoder" not in vars(codec_of(teacher.folder, teacher.family, "cpu"))
